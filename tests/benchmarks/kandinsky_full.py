"""Kandinsky's 12 billion parameters in 8 bits, with random weights: time and peak memory.

    python -m tests.benchmarks.kandinsky_full [--images 8] [--tokens 16] [--disk FOLDER]

Loads as the library does, quantising one tensor after the other, and draws the first image tokens.
Weights are made when they are asked for; with --disk a half-precision checkpoint of 23 GB is
written first, read from there, and removed. On a CPU this needs about 14 GB of memory.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rudalle_lib import registry
from rudalle_lib.checkpoints import Unread, build, stored_tensors
from rudalle_lib.conversion import header, raw_bytes
from rudalle_lib.models.dalle import Dalle, DalleConfig, device_of_tensor
from rudalle_lib.models.int8_linear import with_int8_linears
from rudalle_lib.models.kv_cache import CachedDecoder

NAME = "kandinsky-12b"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class RandomTensor:
    """A half-precision tensor that is made when it is read, from a pool of random numbers."""

    shape: torch.Size
    pool: Tensor

    def read(self) -> Tensor:
        """Norms are 1, the rest is random; layers share the numbers, which changes no timing."""
        if len(self.shape) == 1:
            return torch.ones(self.shape, dtype=torch.float16)
        return self.pool[: self.shape.numel()].view(self.shape)


def random_checkpoint(config: DalleConfig) -> dict[str, RandomTensor]:
    """The names and shapes of the published checkpoint."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Dalle(config).state_dict().items()}
    torch.manual_seed(0)
    largest = max(shape.numel() for shape in shapes.values())
    pool = torch.empty(largest, dtype=torch.float16).uniform_(-0.02, 0.02)
    return {name: RandomTensor(shape, pool) for name, shape in shapes.items()}


def write(path: Path, tensors: Mapping[str, RandomTensor]) -> None:
    """Write a checkpoint tensor by tensor."""
    layout = {
        name: torch.empty(tensor.shape, dtype=torch.float16, device="meta")
        for name, tensor in tensors.items()
    }
    with path.open("wb") as file:
        file.write(header(layout))
        for tensor in tensors.values():
            file.write(raw_bytes(tensor.read()))


def load(config: DalleConfig, tensors: Mapping[str, Unread], parts: int) -> Dalle:
    """Quantise and place the layers, as `weights.load_decoder` does."""

    def make() -> Dalle:
        network = Dalle(config)
        with_int8_linears(network.transformer)
        return network

    def place(name: str) -> torch.device:
        return device_of_tensor(name, config.num_layers, [CPU] * parts)

    return build(make, tensors, Path(NAME), place, torch.bfloat16)


@torch.inference_mode()
def draw(model: Dalle, images: int, tokens: int) -> tuple[float, list[float]]:
    """Seconds of the prefill, and of each step; one prompt, the likeliest tokens."""
    text = torch.randint(4, 16000, (1, model.config.text_length))
    decoder = CachedDecoder(model, text, torch.zeros(images, dtype=torch.int64))
    started = time.perf_counter()
    token = decoder.prefill().argmax(dim=1)
    prefill = time.perf_counter() - started
    steps = []
    for _ in range(tokens - 1):
        started = time.perf_counter()
        logits = decoder.decode_one_token(token)
        assert logits.isfinite().all()
        token = logits.argmax(dim=1)
        steps.append(time.perf_counter() - started)
    return prefill, steps


def row(what: str, figure: str) -> None:
    """Print one row of the table, and the peak so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"| {what:<44} | {figure:>20} | {peak:>7.2f} GB |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=16, help="image tokens, of 1,024")
    parser.add_argument("--layers", type=int, default=64, help="fewer, to try it out")
    parser.add_argument("--parts", type=int, default=2, help="parts that the layers are split into")
    parser.add_argument("--disk", type=Path, default=None, help="folder for a checkpoint")
    arguments = parser.parse_args()
    architecture = {**registry.get(NAME).architecture, "num_layers": arguments.layers}
    config = DalleConfig(**architecture)
    tensors = random_checkpoint(config)
    parameters = sum(tensor.shape.numel() for tensor in tensors.values())
    row("what", "figure")
    row("parameters", f"{parameters / 1e9:.2f} billion")
    started = time.perf_counter()
    if arguments.disk is None:
        model = load(config, tensors, arguments.parts)
    else:
        path = arguments.disk / "kandinsky_random.safetensors"
        try:
            write(path, tensors)
            row("checkpoint written", f"{time.perf_counter() - started:.1f} s")
            started = time.perf_counter()
            model = load(config, stored_tensors(path), arguments.parts)
        finally:
            path.unlink(missing_ok=True)
    row("loaded in 8 bits", f"{time.perf_counter() - started:.1f} s")
    prefill, steps = draw(model, arguments.images, arguments.tokens)
    row("text read, first tokens drawn", f"{prefill:.1f} s")
    middle = sorted(steps)[len(steps) // 2]
    row(f"a step of {arguments.images} images (median)", f"{middle:.2f} s")
    row("image tokens a second", f"{arguments.images / middle:.2f}")


if __name__ == "__main__":
    main()
