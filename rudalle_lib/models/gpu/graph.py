"""A function without arguments as one CUDA graph."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import cache

import torch

STEPS_AHEAD = 2
"""Calls that wait for the device at most. The device is never idle, and a caller that stops between
calls, or reports progress, is right to within this many."""

_capturing = threading.Lock()
"""Held while a graph is captured: PyTorch captures one at a time in a process, and cannot return
memory to a GPU meanwhile, whichever thread asks for it."""


def return_unused_memory() -> None:
    """Return memory that PyTorch keeps for later to the GPUs; waits until no graph is captured."""
    with _capturing:
        torch.cuda.empty_cache()


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which the graphs of a device are captured, always the same.

    PyTorch has 32 streams and gives them out in turn. A new one for each capture would some day be
    that of another thread, whose kernels would become part of the graph.
    """
    return torch.cuda.Stream(device)


class CapturedFunction:
    """Runs a function on its device: on a GPU as one graph, elsewhere as it is.

    Launching some two hundred kernels takes Python longer than a GPU takes to run them; a graph is
    launched at once. The function must work on tensors that stay where they are, with the same
    sizes each time, and decide nothing on the CPU. It runs twice before it is captured, which
    compiles its kernels.

    Args:
        function: the function.
        device: of all its tensors.
    """

    def __init__(self, function: Callable[[], None], device: torch.device) -> None:
        self._function = function
        self._device = device
        self._running: deque[torch.cuda.Event] = deque()
        self._graph = self._capture() if device.type == "cuda" else None

    def __call__(self) -> None:
        """Run the function; on a GPU, wait only if too many calls are ahead of it."""
        if self._graph is None:
            self._function()
            return
        with torch.cuda.device(self._device):
            while len(self._running) >= STEPS_AHEAD:
                self._running.popleft().synchronize()
            self._graph.replay()
            done = torch.cuda.Event(blocking=True)
            done.record()
            self._running.append(done)

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device), _capturing:  # Triton launches on the current device
            before, aside = torch.cuda.current_stream(), _capture_stream(self._device)
            aside.wait_stream(before)
            with torch.cuda.stream(aside):
                for _ in range(2):
                    self._function()
            before.wait_stream(aside)
            # The outer block goes back to the stream of before also if a capture ends with an
            # error. Other threads may allocate memory while this one captures.
            with (
                torch.cuda.stream(before),
                torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"),
            ):
                self._function()
        return graph
