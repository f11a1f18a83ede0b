"""Measure time and peak memory of Kandinsky's 12 billion parameters in 8 bits, with random weights.

    python -m tests.benchmarks.kandinsky_full [--images 8] [--tokens 16] [--disk FOLDER]

The weights are loaded like the library does it, quantising one tensor after another. Then the first
image tokens are drawn. Weights are generated when they are read. With --disk, a half-precision
checkpoint of 23 GB is written first, read, and deleted. On a CPU this needs about 14 GB of memory.
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
from rudalle_lib.models.dalle import Dalle, DalleConfig, device_of_tensor
from rudalle_lib.models.decoding.cached_decoder import CachedDecoder
from rudalle_lib.models.layers.int8_linear import use_int8_linears
from rudalle_lib.weights.checkpoints import LazyTensor, build, stored_tensors
from rudalle_lib.weights.conversion import header
from rudalle_lib.weights.pickles import PickledTensor, Storage
from rudalle_lib.weights.pytorch_files import CheckpointTensor

NAME = "kandinsky-12b"
"""Name of the model in the registry."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class RandomTensor:
    """A half-precision tensor that is generated from a pool of random numbers when it is read."""

    shape: torch.Size
    pool: Tensor

    def read(self) -> Tensor:
        """Return 1 for norms, otherwise random numbers, which all layers share."""
        if len(self.shape) == 1:
            return torch.ones(self.shape, dtype=torch.float16)
        return self.pool[: self.shape.numel()].view(self.shape)


def random_checkpoint(config: DalleConfig) -> dict[str, RandomTensor]:
    """Return random tensors with the names and shapes of the published checkpoint."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Dalle(config).state_dict().items()}
    torch.manual_seed(0)
    largest = max(shape.numel() for shape in shapes.values())
    pool = torch.empty(largest, dtype=torch.float16).uniform_(-0.02, 0.02)
    return {name: RandomTensor(shape, pool) for name, shape in shapes.items()}


def checkpoint_tensor(path: Path, shape: torch.Size) -> CheckpointTensor:
    """Describe a half-precision tensor like one of a checkpoint; only its type and sizes count."""
    stride = torch.empty(shape, device="meta").stride()
    storage = Storage("", torch.float16, shape.numel())
    return CheckpointTensor(path, PickledTensor(storage, torch.float16, 0, shape, stride), 0)


def write(path: Path, tensors: Mapping[str, RandomTensor]) -> None:
    """Write a checkpoint tensor by tensor."""
    layouts = {name: checkpoint_tensor(path, tensor.shape) for name, tensor in tensors.items()}
    with path.open("wb") as file:
        file.write(header(layouts))
        for tensor in tensors.values():
            file.write(tensor.read().reshape(-1).view(torch.uint8).numpy().data)


def load(config: DalleConfig, tensors: Mapping[str, LazyTensor], parts: int) -> Dalle:
    """Quantise and place the layers, like `weights.load_decoder` does."""

    def make_network() -> Dalle:
        network = Dalle(config)
        use_int8_linears(network.transformer)
        return network

    def place(name: str) -> torch.device:
        return device_of_tensor(name, config.num_layers, [CPU] * parts)

    return build(make_network, tensors, Path(NAME), place, torch.bfloat16)


@torch.inference_mode()
def draw(model: Dalle, images: int, tokens: int) -> tuple[float, list[float]]:
    """Draw the likeliest tokens for one prompt; return the seconds of prefill and of each step."""
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
    """Print one row of the table, and the peak memory so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"| {what:<44} | {figure:>20} | {peak:>7.2f} GB |", flush=True)


def main() -> None:
    """Run the command line: measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=16, help="image tokens to draw, of 1,024")
    parser.add_argument("--layers", type=int, default=64, help="layers; fewer for a quick test")
    parser.add_argument(
        "--parts", type=int, default=2, help="devices over which the layers are split"
    )
    parser.add_argument("--disk", type=Path, default=None, help="folder for a temporary checkpoint")
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
    row("prefill and first tokens", f"{prefill:.1f} s")
    middle = sorted(steps)[len(steps) // 2]
    row(f"step of {arguments.images} images (median)", f"{middle:.2f} s")
    row("image tokens per second", f"{arguments.images / middle:.2f}")


if __name__ == "__main__":
    main()
