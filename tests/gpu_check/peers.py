"""The peers on the same device: rudalle 1.1.3, ruclip 0.0.2, and GPT-2 with a static cache.

They run in the environment `.peers`, which `make peers` makes.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.gpu_check.results import Check, measured, not_run
from tests.gpu_check.scale import Scale

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".peers" / "bin" / "python"

TIMEOUT = 60
"""Most seconds per measurement."""

MEASUREMENTS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "rudalle 1.1.3 in bfloat16, batch 8": (
        "rudalle", ("--dtype", "bfloat16", "--batch", "8"), "tokens_per_second",
    ),
    "GPT-2 in bfloat16, static cache, batch 64": (
        "gpt2", ("--batch", "64", "--caches", "static"), "tokens_per_second",
    ),
    "VQ-GAN of rudalle": ("vqgan", ("--batch", "8"), "images_per_second"),
    "super_resolution of rudalle": ("super_resolution", ("--batch", "4"), "images_per_second"),
    "ruclip's Predictor": ("ruclip", ("--batch", "32"), "images_per_second"),
}  # fmt: skip
"""What is measured: the measurement, its options, and the figure."""


def checks(device: torch.device, scale: Scale) -> Iterator[Check]:
    """Measure every peer that is installed."""
    for what, (measurement, options, figure) in MEASUREMENTS.items():
        if not PYTHON.exists():
            yield not_run(what, "the peers are not installed; `make peers` installs them")
            continue
        command = [str(PYTHON), "-m", "tests.benchmarks.measure_peers", measurement, *options,
                   "--device", str(device), "--layers", str(scale.layers)]  # fmt: skip
        yield _run(what, command, figure)


def _run(what: str, command: list[str], figure: str) -> Check:
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return not_run(what, f"it took more than {TIMEOUT} seconds")
    lines = [line for line in done.stdout.splitlines() if line.startswith("FIGURES ")]
    if done.returncode or not lines:
        return not_run(what, f"it failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    rate = json.loads(lines[-1].removeprefix("FIGURES "))[figure]
    unit = figure.partition("_")[0]
    return measured(what, f"{rate:,.1f} {unit}/s", **{figure: rate})
