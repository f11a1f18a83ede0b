"""Tasks that processes of `tasks.runtime.worker_pool` run in tests: quick, and bad in many ways.

They need neither PyTorch nor Prefect, so that a process starts in a moment.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tasks.runtime.job import Job


class Task(NamedTuple):
    """As much of a Prefect task as a process looks at."""

    fn: Callable[..., Any]


def _work(job: Job, folder: str, seconds: float) -> tuple[int, str]:
    """Work on a shard; fails if another process has done the same."""
    (Path(folder) / f"{job.shard.index}").touch(exist_ok=False)
    time.sleep(seconds)
    return os.getpid(), job.runtime.devices


def _where(job: Job) -> tuple[int, str]:
    """The process, and its device."""
    return os.getpid(), job.runtime.devices


def _die_once(job: Job, folder: str, how: str) -> int:
    """Die, or break the GPU, the first time; then return the process."""
    mark = Path(folder) / "died"
    if how != "always" and mark.exists():
        return os.getpid()
    mark.write_text(str(os.getpid()))
    if how == "broken":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def _step(job: Job, folder: str, seconds: float) -> int:
    """Report progress for some time, as a network does."""
    from tasks.runtime.events import notice, reporter

    report = reporter("generate", job.shard.index)
    notice("a file is damaged")
    until = time.monotonic() + seconds
    (Path(folder) / f"pid {os.getpid()}").touch()
    while time.monotonic() < until:
        report(1, 2)
        time.sleep(0.01)
    return os.getpid()


def _fail(job: Job, error: str) -> None:
    from rudalle_lib.errors import TransientError

    class Unknown(Exception):
        """A class that no other process has."""

    raise TransientError("no answer") if error == "known" else Unknown("strange")


generate, die_once, step, fail = Task(_work), Task(_die_once), Task(_step), Task(_fail)
where = Task(_where)
publish = generate
