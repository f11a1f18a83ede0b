"""How much of everything is measured: all of it, or just enough to run every line of the checks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Scale:
    """Sizes of the measurements.

    Attributes:
        copy_bytes: size of the copied tensor.
        product_size: side of the multiplied matrices.
        invariance: batches in which the same image is drawn.
        speeds: batches whose tokens per second are measured.
        layers: layers of the decoder whose speed is measured; its other sizes are Malevich's.
        hidden: its width; Malevich has 2,048.
        seconds: most seconds for one measurement of speed.
        images: images per measurement of the other networks.
        prompts: rows of the demo's prompt table that are drawn; None is all.
        replicas: images per prompt.
        run_images: images of the long run.
        published_sizes: whether its networks have the published sizes; otherwise they are tiny.
        left: seconds that are left for the checks.
    """

    copy_bytes: int = 2**30
    product_size: int = 8192
    invariance: tuple[int, ...] = (1, 17, 64, 256)
    speeds: tuple[int, ...] = (64, 256, 512, 1024)
    layers: int = 24
    hidden: int = 2048
    seconds: float = 5.0
    images: int = 32
    prompts: int | None = None
    replicas: int = 8
    run_images: int = 2000
    published_sizes: bool = True
    left: float = 480.0


FULL = Scale()

QUICK = Scale(
    copy_bytes=2**20, product_size=128, invariance=(1, 3), speeds=(2,), layers=2, hidden=64,
    seconds=0.5, images=1, prompts=2, replicas=2, run_images=8, published_sizes=False,
)  # fmt: skip
"""Seconds on a CPU."""


def synchronise(device: torch.device) -> None:
    """Wait until a device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """The seconds of one call: the fastest of several, after one to warm up."""
    work()
    fastest = float("inf")
    for _ in range(repeats):
        synchronise(device)
        started = time.perf_counter()
        work()
        synchronise(device)
        fastest = min(fastest, time.perf_counter() - started)
    return fastest


def replayed(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The same work as one CUDA graph, so that launching it takes no time; on a CPU the work."""
    if device.type != "cuda":
        return work
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay
