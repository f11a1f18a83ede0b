"""Shared by both sides of a comparison: timers, equal weights, the average over an image.

This is imported by the measurements of this project and, in another environment, by those of its
peers. It therefore imports nothing except torch.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

IMAGE_TOKENS = 1024
"""Tokens per image."""

POSITIONS = (1, 256, 512, 768, 1000)
"""Positions in an image at which a step is measured."""

CLIP_PIECES = Path(__file__).parents[1] / "data" / "parity" / "ruclip" / "bpe.model"
"""A tokenizer for ruCLIP."""


def seconds_of(work: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one call, to the end of its work on a GPU."""
    synchronise()
    started = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - started


def synchronise() -> None:
    """Wait until the GPU, if this process uses one, has done all its work."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median seconds of `repeats` calls, after one to warm up."""
    work()
    return statistics.median(seconds_of(work) for _ in range(repeats))


def average(seconds: Mapping[int, float]) -> float:
    """Return the mean seconds per step over a whole image.

    Args:
        seconds: seconds of a step by position. Between positions they are interpolated linearly;
            before the first and after the last they are constant.
    """
    positions = sorted(seconds)
    total = seconds[positions[0]] * positions[0]
    for before, after in zip(positions, positions[1:], strict=False):
        total += (after - before) * (seconds[before] + seconds[after]) / 2
    return (total + seconds[positions[-1]] * (IMAGE_TOKENS - positions[-1])) / IMAGE_TOKENS


def random_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return weights by name: norms 1, biases 0, the rest from one pool of random numbers."""
    generator = torch.Generator().manual_seed(0)
    largest = max(torch.Size(shape).numel() for shape in shapes.values())
    pool = torch.empty(largest).uniform_(-0.02, 0.02, generator=generator)
    weights = {}
    for name, shape in shapes.items():
        if len(shape) < 2:
            weights[name] = torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
        else:
            weights[name] = pool[: torch.Size(shape).numel()].view(*shape)
    return weights


@torch.no_grad()
def fill(network: nn.Module) -> None:
    """Set the parameters of a network to `random_weights`; keep its buffers."""
    parameters = dict(network.named_parameters())
    for name, value in random_weights(
        {name: tensor.shape for name, tensor in parameters.items()}
    ).items():
        parameters[name].copy_(value)


def peak_gigabytes() -> float:
    """Return the peak memory of this process (Linux only)."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9


def report_figures(**figures: Any) -> None:
    """Print figures for the parent process, which is `engine.py`."""
    print("FIGURES " + json.dumps(figures), flush=True)
