"""How a run tells whoever watches how far it is.

The listener travels in a context variable: Prefect copies the context into the threads that run
tasks, and where there is no listener (another process) telling does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass

from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

from rudalle_lib.planning import Plan
from rudalle_lib.records import ShardManifest
from tasks.stopping import stop_if_asked


@dataclass(frozen=True)
class Planned:
    """The plan is made; `todo` of its shards are not finished yet."""

    plan: Plan
    todo: int


@dataclass(frozen=True)
class Step:
    """`done` of `total` units of a stage's work on one shard."""

    stage: str
    shard: int
    done: int
    total: int


@dataclass(frozen=True)
class ShardFinished:
    """A shard is published."""

    manifest: ShardManifest


@dataclass(frozen=True)
class ShardFailed:
    """A shard has failed, retries included; `message` names the stage and says why."""

    shard: int
    message: str


@dataclass(frozen=True)
class Noticed:
    """Something that whoever watches should know, such as a damaged file that is made again."""

    message: str


Event = Planned | Step | ShardFinished | ShardFailed | Noticed

listener: ContextVar[Callable[[Event], None] | None] = ContextVar("listener", default=None)
"""Called with every event, from several threads at once."""


def tell(event: Event) -> None:
    """Tell the listener of this context, if there is one."""
    listen = listener.get()
    if listen is not None:
        listen(event)


def notice(message: str) -> None:
    """Tell the listener, and Prefect's log of the run, a sentence."""
    tell(Noticed(message))
    with suppress(MissingContextError):  # outside of a run
        get_run_logger().warning(message)


def reporter(stage: str, shard: int) -> Callable[[int, int], None]:
    """A function that tells of steps, `report(done, total)`, and raises where the run must stop."""

    def report(done: int, total: int) -> None:
        tell(Step(stage, shard, done, total))
        stop_if_asked()

    return report
