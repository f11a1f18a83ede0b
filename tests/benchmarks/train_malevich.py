"""Memory and time of fine-tuning Malevich, with random weights of its size.

    python -m tests.benchmarks.train_malevich [--steps 3] [--threads N]

A step of LoRA in bfloat16 with checkpointing and one image needs about 5 GB. The measured peak is
compared with the formula of `rudalle_lib.training.memory`, from which the table of devices follows.
The results go to `results/train_malevich.json`.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from rudalle_lib.config.fine_tune import TrainingConfig
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.registry import get
from rudalle_lib.training.decoder import DecoderTask, TensorExamples
from rudalle_lib.training.memory import largest_batch, peak_bytes
from rudalle_lib.training.trainer import train
from tests.benchmarks.engine import RESULTS, machine

PATH = RESULTS / "train_malevich.json"

DEVICES = (16, 24, 40, 80)
"""Memory of devices in GB."""

METHODS = ("lora", "all")


@dataclass(frozen=True)
class Measured:
    """Peak of memory in bytes, above what PyTorch takes, and seconds of each step."""

    peak: int
    seconds: list[float]


def settings(method: str, steps: int = 3) -> TrainingConfig:
    """One image at once, in bfloat16, with checkpointing."""
    return TrainingConfig.model_validate(
        {
            "method": method, "steps": steps, "batch_size": 1, "gradient_checkpointing": True,
            "checkpoint_seconds": 1e6,
        }
    )  # fmt: skip


def status(name: str) -> int:
    """Memory of this process in bytes: VmRSS now, or VmHWM at most since `reset`."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def reset() -> None:
    """Let VmHWM start at what is used now."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(config: DalleConfig, steps: int) -> Measured:
    """Train a decoder with random weights."""
    training, before = settings("lora", steps), status("VmRSS")
    with torch.device("meta"):
        model = Dalle(config)
    model.to_empty(device="cpu")
    model.init_weights()
    shapes = {"text": config.text_length, "image": config.image_length}
    tokens = {name: torch.ones(steps, n, dtype=torch.int64) for name, n in shapes.items()}
    task = DecoderTask(model, TensorExamples(tokens), training)
    reset()  # the weights were float32 until now
    seconds = []
    with TemporaryDirectory() as work:
        train(
            task, training, work=Path(work), device="cpu",
            on_figures=lambda step, figures: seconds.append(figures["seconds"]),
        )  # fmt: skip
        peak = status("VmHWM") - before
    return Measured(peak, [b - a for a, b in zip([0.0, *seconds], seconds, strict=False)])


def main() -> None:
    """Run the command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = DalleConfig(**get("malevich-v3").architecture)
    started = time.monotonic()
    formula = peak_bytes(config, settings("lora"), 1)
    print(f"formula: {formula / 1e9:.2f} GB ({time.monotonic() - started:.0f} s)", flush=True)
    measured = measure(config, options.steps)
    print(f"measured: {measured.peak / 1e9:.2f} GB, steps of {measured.seconds} s", flush=True)
    table = {
        method: {gb: largest_batch(config, settings(method), gb * 10**9) for gb in DEVICES}
        for method in METHODS
    }
    for method, batches in table.items():
        print(method, batches, flush=True)
    result = {
        "machine": machine(options.threads),
        "torch": torch.__version__,
        "formula_bytes": formula,
        "measured_bytes": measured.peak,
        "seconds_per_step": measured.seconds,
        "formula_bytes_all": peak_bytes(config, settings("all"), 1),
        "largest_batch": table,
    }
    PATH.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
