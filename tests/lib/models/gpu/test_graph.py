"""A function is captured once, replayed afterwards, and never far ahead of its device."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch

from rudalle_lib.models.gpu import graph as graph_module
from rudalle_lib.models.gpu.graph import STEPS_AHEAD, CapturedFunction, return_unused_memory

CUDA = torch.device("cuda", 1)


class Cuda:
    """The part of `torch.cuda` that is used, which writes down what happens on a device."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.finished = 0
        self.captured_on: list[Any] = []
        self.current: Any = None
        self.end_fails = False

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cuda, log = self, self.log

        class Stream:
            def __init__(self, device: torch.device = CUDA) -> None:
                assert device == CUDA

            def wait_stream(self, other: Any) -> None:
                log.append("wait for stream")

        class Graph:
            def replay(self) -> None:
                log.append("replay")

        class Event:
            def __init__(self, blocking: bool) -> None:
                assert blocking  # a thread that waits must not use a core
                self.number = log.count("replay")

            def record(self) -> None:
                log.append("record")

            def synchronize(self) -> None:
                cuda.finished = self.number

        @contextmanager
        def on(device: torch.device) -> Iterator[None]:
            assert device == CUDA
            yield

        @contextmanager
        def stream(chosen: Any) -> Iterator[None]:
            before, cuda.current = cuda.current, chosen
            log.append("stream")
            try:
                yield
            finally:
                cuda.current = before
                log.append("end of stream")

        @contextmanager
        def graph(_: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
            """As PyTorch's: if the end of a capture fails, the stream stays the current one."""
            assert isinstance(stream, Stream)  # PyTorch's own one may be on another device
            cuda.captured_on.append(stream)
            before, cuda.current = cuda.current, stream
            log.append(f"graph {capture_error_mode}")
            try:
                yield
            finally:
                if cuda.end_fails:
                    raise RuntimeError("operation failed due to a previous error during capture")
                cuda.current = before
                log.append("end of graph")

        self.current = Stream()
        fresh = cache(graph_module._capture_stream.__wrapped__)
        monkeypatch.setattr(graph_module, "_capture_stream", fresh)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: cuda.current)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "device", on)
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "graph", graph)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: log.append("empty cache"))


def test_on_a_cpu_the_function_is_called() -> None:
    calls: list[int] = []
    captured = CapturedFunction(lambda: calls.append(1), torch.device("cpu"))
    assert calls == []
    captured()
    captured()
    assert calls == [1, 1]


def test_on_a_gpu_it_is_captured_once_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda()
    cuda.install(monkeypatch)
    captured = CapturedFunction(lambda: cuda.log.append("call"), CUDA)
    assert cuda.log == [
        "wait for stream", "stream", "call", "call", "end of stream", "wait for stream",
        "stream", "graph thread_local", "call", "end of graph", "end of stream",
    ]  # fmt: skip
    cuda.log.clear()
    for step in range(1, 7):
        captured()
        assert cuda.log.count("replay") == cuda.log.count("record") == step
        assert step - cuda.finished <= STEPS_AHEAD
    assert "call" not in cuda.log and cuda.finished == 4


def test_all_graphs_of_a_device_are_captured_on_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch would give the stream of another thread for the 33rd one that is asked for."""
    cuda = Cuda()
    cuda.install(monkeypatch)
    for _ in range(3):
        CapturedFunction(lambda: None, CUDA)
    assert len(cuda.captured_on) == 3 and len(set(cuda.captured_on)) == 1


def test_memory_is_returned_only_between_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's allocator has an internal error otherwise, in whichever thread asked."""
    cuda = Cuda()
    cuda.install(monkeypatch)
    other = threading.Thread(target=return_unused_memory)

    def call() -> None:
        if "graph thread_local" in cuda.log:
            other.start()
            other.join(0.2)
            assert other.is_alive()

    CapturedFunction(call, CUDA)
    other.join()
    assert cuda.log[-1] == "empty cache" and cuda.log.index("end of graph") < len(cuda.log) - 1


def test_after_a_capture_that_fails_the_stream_is_that_of_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = Cuda()
    cuda.install(monkeypatch)
    before, cuda.end_fails = cuda.current, True
    with pytest.raises(RuntimeError, match="during capture"):
        CapturedFunction(lambda: None, CUDA)
    assert cuda.current is before
    return_unused_memory()  # nothing holds the lock
    assert cuda.log[-1] == "empty cache"
