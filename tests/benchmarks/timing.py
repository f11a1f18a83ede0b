"""What both sides of a comparison share: clocks, the same weights, the average over an image.

Imported by the measurements of this project and, in another environment, by those of its peers, so
nothing but torch is imported here.
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
POSITIONS = (1, 256, 512, 768, 1000)
CLIP_PIECES = Path(__file__).parents[1] / "data" / "parity" / "ruclip" / "bpe.model"


def seconds_of(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """The median of some calls, after one to warm up."""
    work()
    return statistics.median(seconds_of(work) for _ in range(repeats))


def average(seconds: Mapping[int, float]) -> float:
    """Mean seconds of a step over a whole image, from steps at some positions.

    Between positions the time is taken to grow evenly, beyond the first and last to stay.
    """
    places = sorted(seconds)
    total = seconds[places[0]] * places[0]
    for before, after in zip(places, places[1:], strict=False):
        total += (after - before) * (seconds[before] + seconds[after]) / 2
    return (total + seconds[places[-1]] * (IMAGE_TOKENS - places[-1])) / IMAGE_TOKENS


def values(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Weights by name: norms 1, biases 0, the rest from one pool of random numbers."""
    generator = torch.Generator().manual_seed(0)
    largest = max(torch.Size(shape).numel() for shape in shapes.values())
    pool = torch.empty(largest).uniform_(-0.02, 0.02, generator=generator)
    made = {}
    for name, shape in shapes.items():
        if len(shape) < 2:
            made[name] = torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
        else:
            made[name] = pool[: torch.Size(shape).numel()].view(*shape)
    return made


@torch.no_grad()
def fill(network: nn.Module) -> None:
    """Give a network those weights; its buffers stay as they are."""
    parameters = dict(network.named_parameters())
    for name, value in values({name: tensor.shape for name, tensor in parameters.items()}).items():
        parameters[name].copy_(value)


def peak_gigabytes() -> float:
    """The most memory that this process has had, on Linux."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9


def tell(**figures: Any) -> None:
    """Hand figures to the process that asked for them."""
    print("FIGURES " + json.dumps(figures), flush=True)
