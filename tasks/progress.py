"""How a task tells whoever watches how far it is.

The listener travels in a context variable: Prefect copies the context into the threads that run
tasks, and where there is none (another process) telling does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """`done` of `total` units of a stage's work on one shard."""

    stage: str
    shard: int
    done: int
    total: int


Listener = Callable[[Step], None]

listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
"""Called with every step, from several threads at once."""


def reporter(stage: str, shard: int) -> Callable[[int, int], None]:
    """A function that tells the listener of this context: `report(done, total)`."""
    listen = listener.get()

    def report(done: int, total: int) -> None:
        if listen is not None:
            listen(Step(stage, shard, done, total))

    return report
