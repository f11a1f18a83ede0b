"""A function is captured once, replayed afterwards, and never far ahead of its device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from rudalle_lib.models.gpu.graph import STEPS_AHEAD, CapturedFunction

CUDA = torch.device("cuda", 1)


class Cuda:
    """The part of `torch.cuda` that is used, which writes down what happens on a device."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.finished = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cuda, log = self, self.log

        class Stream:
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
        def block(name: str, *_: Any, **options: Any) -> Iterator[None]:
            log.append(" ".join([name, *map(str, options.values())]))
            yield
            log.append(f"end of {name}")

        def on(device: torch.device) -> Any:
            assert device == CUDA
            return block("device")

        def graph(_: Any, stream: Any, capture_error_mode: str) -> Any:
            assert isinstance(stream, Stream)  # PyTorch's own one may be on another device
            return block("graph", mode=capture_error_mode)

        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", Stream)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "device", on)
        monkeypatch.setattr(torch.cuda, "stream", lambda *a: block("stream", *a))
        monkeypatch.setattr(torch.cuda, "graph", graph)


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
        "device", "wait for stream", "stream", "call", "call", "end of stream", "wait for stream",
        "graph thread_local", "call", "end of graph", "end of device",
    ]  # fmt: skip
    cuda.log.clear()
    for step in range(1, 7):
        captured()
        assert cuda.log.count("replay") == cuda.log.count("record") == step
        assert step - cuda.finished <= STEPS_AHEAD
    assert "call" not in cuda.log and cuda.finished == 4
