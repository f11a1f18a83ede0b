"""Memory and time of fine-tuning Malevich, with random weights of its size.

    python -m tests.benchmarks.train_malevich [--steps 2] [--threads N] [--docs]

Steps of LoRA in bfloat16 with checkpointing and one image are made in a process of its own, as a
fine-tuning makes them; it needs about 6 GB. Its peak is compared with the formula of
`rudalle_lib.training.memory`, from which the table of devices follows. `--table` makes the table
again and keeps what was measured. The results go to `results/train_malevich.json`, and with
`--docs` into docs/training.md.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from rudalle_lib.config.fine_tune import TrainingConfig
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.registry import get
from rudalle_lib.training.decoder import DecoderTask, TensorExamples
from rudalle_lib.training.launch import launch
from rudalle_lib.training.memory import largest_batch, peak_bytes
from rudalle_lib.training.trainer import train
from tests.benchmarks.documentation import TRAINING, write_block
from tests.benchmarks.engine import RESULTS, machine

PATH = RESULTS / "train_malevich.json"
MARK = "train_malevich"
"""Name of the block in the documentation."""

DEVICES = (16, 24, 40, 80)
"""Memory of devices in GB."""

METHODS = {"lora": "`method: lora`", "all": "`method: all`"}


@dataclass(frozen=True)
class Measured:
    """A training of LoRA with one image at once.

    Attributes:
        bytes: peak of the memory of its process, above what it takes after a tiny training.
        seconds: of each step.
    """

    bytes: int
    seconds: list[float]


def settings(method: str, steps: int = 2) -> TrainingConfig:
    """One image at once, in bfloat16, with checkpointing."""
    return TrainingConfig.model_validate(
        {
            "method": method, "steps": steps, "batch_size": 1, "gradient_checkpointing": True,
            "checkpoint_seconds": 1e6,
        }
    )  # fmt: skip


def malevich() -> DalleConfig:
    """The sizes of Malevich."""
    return DalleConfig(**get("malevich-v3").architecture)


# --- measuring ---------------------------------------------------------------------------------


def status(name: str) -> int:
    """Memory of this process in bytes: VmRSS now, or VmHWM at most since `reset`."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def reset() -> None:
    """Let VmHWM start at what is used now."""
    Path("/proc/self/clear_refs").write_text("5")


def learn(config: DalleConfig, steps: int, work: Path) -> list[float]:
    """Train a decoder with random weights; return the seconds of each step."""
    training = settings("lora", steps)
    with torch.device("meta"):
        model = Dalle(config)
    model.to_empty(device="cpu")
    model.init_weights()
    shapes = {"text": config.text_length, "image": config.image_length}
    tokens = {name: torch.ones(steps, n, dtype=torch.int64) for name, n in shapes.items()}
    task = DecoderTask(model, TensorExamples(tokens), training)
    gc.collect()
    reset()  # the weights were float32 until now
    ends = [0.0]
    train(
        task, training, work=work, device="cpu",
        on_figures=lambda step, figures: ends.append(figures["seconds"]),
    )  # fmt: skip
    return [round(b - a, 1) for a, b in zip(ends, ends[1:], strict=False)]


def measure_here(config: DalleConfig, steps: int, result: str) -> None:
    """Train, and write what it took to a file; the work of the process."""
    with TemporaryDirectory() as work:
        tiny = replace(config, num_layers=1, hidden_size=64, num_heads=2)
        learn(tiny, 1, Path(work) / "tiny")  # what PyTorch loads then is no memory of tensors
        gc.collect()
        before = status("VmRSS")
        seconds = learn(config, steps, Path(work) / "whole")
        measured = Measured(status("VmHWM") - before, seconds)
    Path(result).write_text(json.dumps(asdict(measured)))


def measure(config: DalleConfig, steps: int, threads: int) -> Measured:
    """Train in a process of its own, started as a fine-tuning starts it."""
    from tests.benchmarks import train_malevich

    with TemporaryDirectory() as folder:
        path = Path(folder) / "measured.json"
        # The process imports the function by the name of its module, which is not `__main__`.
        launch(train_malevich.measure_here, (config, steps, str(path)), 1, threads=threads)
        return Measured(**json.loads(path.read_text()))


def predict(config: DalleConfig) -> dict[str, Any]:
    """What the formula says of each method: bytes with one image, and images that fit."""
    return {
        method: {
            "bytes": peak_bytes(config, settings(method), 1),
            "images": {
                str(size): largest_batch(config, settings(method), size * 10**9)
                for size in DEVICES
            },
        }
        for method in METHODS
    }  # fmt: skip


# --- the table ---------------------------------------------------------------------------------


def table(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "| Malevich, images at once | one image | " + " | ".join(f"{d} GB" for d in DEVICES) + " |",
        "| --- | ---: |" + " ---: |" * len(DEVICES),
    ]
    for method, name in METHODS.items():
        row = results["formula"][method]
        cells = [str(row["images"][str(size)] or "–") for size in DEVICES]
        lines.append(f"| {name} | {row['bytes'] / 1e9:.1f} GB | {' | '.join(cells)} |")
    measured, formula = results["measured"], results["formula"]["lora"]["bytes"]
    seconds = ", ".join(f"{one:,.0f}" for one in measured["seconds"])
    lines += [
        "",
        f"{results['head']}: `method: lora` with one image took {measured['bytes'] / 1e9:.2f} GB, "
        f"where the formula says {formula / 1e9:.2f}, and {seconds} seconds per step.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--docs", action="store_true", help="update docs/training.md")
    options = parser.parse_args()
    if options.table:
        results = json.loads(PATH.read_text("utf-8"))
    else:
        measured = asdict(measure(malevich(), options.steps, options.threads))
        print(measured, file=sys.stderr, flush=True)
        today = datetime.datetime.now(datetime.UTC)
        head = (
            f"`python -m tests.benchmarks.train_malevich`, {machine(options.threads)}, "
            f"torch {torch.__version__}, {today:%Y-%m-%d}"
        )
        results = {"head": head, "measured": measured}
    results["formula"] = predict(malevich())
    PATH.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    text = table(results)
    print(text)
    if options.docs:
        write_block(TRAINING, MARK, text)


if __name__ == "__main__":
    main()
