"""Encoding and decoding image files beside a network.

A GPU must not wait for files: encoding a PNG of 256 pixels takes 8 ms of a CPU, as long as a GPU
takes to draw several images. So threads read files ahead of the network and encode its images
behind it. Pillow releases Python's lock while it compresses. On a CPU the network itself needs all
cores, and files are encoded at once in the thread that asks.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_THREADS = 8
"""More threads than this would wait for each other: Pillow holds Python's lock while it decodes."""


class AtOnce(Executor):
    """Runs what is submitted before `submit` returns."""

    def submit(
        self,
        fn: Callable[Arguments, Result],
        /,
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Future[Result]:
        """Run a function; its future is finished. Exceptions are raised here."""
        future: Future[Result] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


AT_ONCE = AtOnce()
"""Encodes and decodes in the thread that asks."""


@dataclass(frozen=True)
class Pending(Generic[Result]):
    """Rows whose image files are still being encoded; the network is not needed for them."""

    futures: Sequence[Future[Result]]

    def rows(self) -> list[Result]:
        """Wait for all files; returns the rows in order."""
        return [future.result() for future in self.futures]


def files_beside(device: torch.device) -> Executor:
    """What encodes and decodes the files of a network.

    Args:
        device: of the network.
    """
    return AT_ONCE if device.type == "cpu" else _threads()


def files_of_machine() -> Executor:
    """What encodes files that belong to no network: threads, unless they slow networks down."""
    return _threads() if torch.cuda.is_available() else AT_ONCE


def map_ahead(
    files: Executor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int = MAX_THREADS
) -> Iterator[Result]:
    """Like `map`, but up to `ahead` results are computed before they are asked for."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        if len(waiting) > ahead:
            yield waiting.popleft().result()
        waiting.append(files.submit(work, item))
    while waiting:
        yield waiting.popleft().result()


@cache
def _threads() -> Executor:
    """The threads of this process; each GPU of a machine has a process, so they share its cores."""
    share = (os.cpu_count() or 1) // max(1, torch.cuda.device_count())
    return ThreadPoolExecutor(min(MAX_THREADS, max(1, share)), thread_name_prefix="image-files")


def submit_all(
    files: Executor, work: Callable[..., Result], *columns: Iterable[Any]
) -> list[Future[Result]]:
    """Submit `work(*row)` for each row of some columns of equal length."""
    return [files.submit(work, *row) for row in zip(*columns, strict=True)]
