"""Events of a run: what it reports to a listener, such as the progress display.

The listener is in a context variable. Prefect copies the context into the threads that run tasks.
Without a listener, as in another process, events are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field

from rudalle_lib.escaping import safe_text
from rudalle_lib.humanize import counted
from rudalle_lib.prompts.plan import Plan
from rudalle_lib.schema.records import ShardManifest
from tasks.runtime.stopping import stop_if_requested


@dataclass(frozen=True)
class Planned:
    """The plan is ready; `todo` of its shards are not finished, with these numbers of prompts."""

    plan: Plan
    todo: int
    prompts: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Selected:
    """All images are scored, and rules that look across shards have decided.

    Attributes:
        images: number of images that the rules chose among.
        kept: number of images that they keep.
        prompts: number of prompts of each shard that is to be published, and of those that failed.
    """

    images: int
    kept: int
    prompts: Mapping[int, int]


@dataclass(frozen=True)
class Step:
    """A stage has finished `done` of the `total` units of its work on one shard."""

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
    """A shard has failed, retries included.

    Attributes:
        shard: its index.
        message: the stage and the reason.
        page: address of the task on Prefect's pages; empty if there are none.
    """

    shard: int
    message: str
    page: str = ""


@dataclass(frozen=True)
class Noticed:
    """Something that the user should know, such as a damaged file that is rebuilt."""

    message: str


@dataclass(frozen=True)
class RoundFinished:
    """A round of drawing is finished, if images are drawn in rounds.

    Attributes:
        shard: index of the shard.
        number: of the round, from 1; counted anew when a killed run goes on.
        drawn: images of the shard that are drawn so far.
        waiting: prompts that need more.
        prompts: prompts that can be drawn.
    """

    shard: int
    number: int
    drawn: int
    waiting: int
    prompts: int

    def __str__(self) -> str:
        """The round in a sentence without a full stop."""
        need = f"{self.waiting:,} of {counted(self.prompts, 'prompt')} need more"
        return (
            f"shard {self.shard:05d}, round {self.number}: {counted(self.drawn, 'image')} drawn, "
            f"{need if self.waiting else 'every prompt has enough'}"
        )


Event = Planned | Selected | Step | RoundFinished | ShardFinished | ShardFailed | Noticed

listener: ContextVar[Callable[[Event], None] | None] = ContextVar("listener", default=None)
"""Called with every event, from several threads concurrently."""


def emit(event: Event) -> None:
    """Pass an event to the listener of this context, if there is one."""
    listen = listener.get()
    if listen is not None:
        listen(event)


def notice(message: str) -> None:
    """Report a sentence to the listener and to Prefect's log of the run."""
    from prefect.exceptions import MissingContextError  # takes a second, and workers start often
    from prefect.logging import get_run_logger

    message = safe_text(message)
    emit(Noticed(message))
    with suppress(MissingContextError):  # outside of a run
        get_run_logger().warning(message)


def report_round(event: RoundFinished) -> None:
    """Report a round to the listener and to Prefect's log of the run."""
    from prefect.exceptions import MissingContextError  # takes a second, and workers start often
    from prefect.logging import get_run_logger

    emit(event)
    with suppress(MissingContextError):  # outside of a run
        get_run_logger().info(str(event))


def reporter(stage: str, shard: int) -> Callable[[int, int], None]:
    """A progress callback for a stage.

    Args:
        stage: name of the stage.
        shard: index of the shard.

    Returns:
        A function of (finished units, all units). It emits a `Step`, and raises `StoppedError` if
        the run must stop.
    """

    def report(done: int, total: int) -> None:
        emit(Step(stage, shard, done, total))
        stop_if_requested()

    return report
