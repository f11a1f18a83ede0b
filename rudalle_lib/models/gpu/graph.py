"""A function without arguments as one CUDA graph."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import torch

STEPS_AHEAD = 2
"""Calls that wait for the device at most. The device is never idle, and a caller that stops between
calls, or reports progress, is right to within this many."""

_capturing = threading.Lock()
"""PyTorch captures one graph at a time in a process."""


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
        with torch.cuda.device(self._device):  # Triton launches on the current device
            before, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            aside.wait_stream(before)
            with torch.cuda.stream(aside):
                for _ in range(2):
                    self._function()
            before.wait_stream(aside)
            # Other threads may allocate memory while this one captures. PyTorch's own stream for
            # captures is on the device that was current when it captured for the first time.
            with (
                _capturing,
                torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"),
            ):
                self._function()
        return graph
