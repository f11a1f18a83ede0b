"""What someone at a terminal, or in a log, sees of a run while it goes on."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from rudalle_lib.planning import Plan
from rudalle_lib.records import ShardManifest
from rudalle_lib.stages import STAGES
from tasks.progress import Event, Noticed, Planned, ShardFailed, ShardFinished, Step

HEARTBEAT = 30.0
"""Seconds between two lines about a stage that is under way, where there is no terminal."""


class View(Protocol):
    """Shows events; called from several threads. A context manager: it is on screen inside."""

    def __call__(self, event: Event) -> None:
        """Show an event."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop showing."""


def make_view(console: Console, off: Collection[str] = ()) -> View:
    """Progress bars in a terminal, plain lines elsewhere; `off` are stages the run does without."""
    stages = [stage for stage in STAGES if stage not in off]
    return Bars(console, stages) if console.is_terminal else Lines(console)


class ShardProgress:
    """How far every stage is over all shards, in shards and parts of them."""

    def __init__(self, stages: Sequence[str]) -> None:
        self._stages = list(stages)
        self._parts: defaultdict[str, dict[int, float]] = defaultdict(dict)

    def step(self, step: Step) -> None:
        """Note a step; what comes before its stage must be over."""
        for stage in self._stages[: self._stages.index(step.stage)]:
            self._parts[stage][step.shard] = 1.0
        self._parts[step.stage][step.shard] = step.done / max(step.total, 1)

    def finish(self, shard: int) -> None:
        """Note that a shard is over, finished or failed."""
        for stage in self._stages:
            self._parts[stage][shard] = 1.0

    def of(self, stage: str) -> float:
        """Shards that a stage is through with."""
        return sum(self._parts[stage].values())


class Pace:
    """Shards and images of a run so far, images a second, and how long the rest will take."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started: float | None = None
        self._todo = self._shards = self._images = self._kept = self._aside = 0

    def plan(self, todo: int) -> None:
        """The run begins, with so many shards to do."""
        self._todo, self._started = todo, self._clock()

    def finish(self, manifest: ShardManifest | None) -> None:
        """A shard is over; None if it failed."""
        self._shards += 1
        if manifest is not None:
            self._images += manifest.images
            self._kept += manifest.kept
            self._aside += sum(manifest.rejected.values())

    def counts(self) -> str:
        """Images: "12 of 64 images kept, 52 rows set aside, 3.1 images/s"."""
        parts = [f"{self._kept:,} of {self._images:,} images kept", f"{self._aside:,} set aside"]
        return ", ".join([*parts, *self._rate()])

    def rest(self) -> str:
        """Shards: "3 of 8 shards, 3.1 images/s, about 2 min 5 s left"."""
        parts = [f"{self._shards:,} of {counted(self._todo, 'shard')}", *self._rate()]
        elapsed, left = self._elapsed(), self._todo - self._shards
        if left and elapsed:
            parts.append(f"about {duration(elapsed / self._shards * left)} left")
        return ", ".join(parts)

    def _rate(self) -> list[str]:
        elapsed = self._elapsed()
        return [f"{self._images / elapsed:,.1f} images/s"] if elapsed and self._images else []

    def _elapsed(self) -> float:
        """Seconds since the plan was made."""
        return 0.0 if self._started is None else self._clock() - self._started


class Bars:
    """A bar a stage, and a line that counts images."""

    def __init__(
        self,
        console: Console,
        stages: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._pace = Pace(clock)
        self._waiting = console.status("Starting Prefect")
        self._progress = Progress(
            TextColumn("{task.description}", justify="left", style="bold"),
            BarColumn(bar_width=44, complete_style="red", finished_style="white"),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[note]}", style="bright_black"),
            console=console,
        )
        self._rows: dict[str, TaskID] = {
            stage: self._progress.add_task(stage, total=None, start=False, note="")
            for stage in stages
        }
        self._parts = ShardProgress(stages)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Say that the run starts; the bars come with the plan."""
        self._waiting.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the bars as they are."""
        self._waiting.stop()
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Move the bars; failures are printed above them."""
        with self._lock:
            if isinstance(event, Planned):
                self._plan(event)
            elif isinstance(event, Step):
                self._parts.step(event)
            elif isinstance(event, ShardFinished):
                self._parts.finish(event.manifest.index)
                self._pace.finish(event.manifest)
            elif isinstance(event, Noticed):
                self._console.print(Text(event.message, style="yellow"))
            else:
                self._parts.finish(event.shard)
                self._pace.finish(None)
                self._console.print(Text(failure_line(event), style="red"))
            self._draw()

    def _plan(self, event: Planned) -> None:
        self._waiting.stop()
        self._pace.plan(event.todo)
        for line in plan_lines(event.plan, event.todo):
            self._console.print(Text(line))
        for row in self._rows.values():
            self._progress.update(row, total=event.todo)
        if event.todo:
            self._progress.start()

    def _draw(self) -> None:
        for stage, row in self._rows.items():
            done = self._parts.of(stage)
            if done:
                self._progress.start_task(row)
            note = self._pace.counts() if stage == "publish" else ""
            self._progress.update(row, completed=done, note=note)


class Lines:
    """A line a shard, and one now and then about what is under way."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._pace = Pace(clock)
        self._clock = clock
        self._last = clock()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Nothing to prepare."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to tidy."""

    def __call__(self, event: Event) -> None:
        """Print what is worth a line."""
        with self._lock:
            for line in self._lines(event):
                self._last = self._clock()
                self._console.print(Text(line), soft_wrap=True)

    def _lines(self, event: Event) -> list[str]:
        if isinstance(event, Planned):
            self._pace.plan(event.todo)
            return plan_lines(event.plan, event.todo)
        if isinstance(event, ShardFinished):
            self._pace.finish(event.manifest)
            return [f"{finished_line(event.manifest)}; {self._pace.rest()}"]
        if isinstance(event, ShardFailed):
            self._pace.finish(None)
            return [failure_line(event)]
        if isinstance(event, Noticed):
            return [event.message]
        if self._clock() - self._last < HEARTBEAT:
            return []
        share = event.done / max(event.total, 1)
        return [f"shard {event.shard:05d}: {event.stage} {share:.0%}"]


def plan_lines(plan: Plan, todo: int) -> list[str]:
    """What the plan says: prompts, rejected rows, shards."""
    prompts = f"{counted(plan.prompts, 'prompt')} in {counted(len(plan.shards), 'shard')}"
    new = f"{plan.new_prompts:,} new" if plan.new_prompts else "none new"
    lines = [f"{prompts}, {new}; {counted(todo, 'shard') if todo else 'nothing'} to do"]
    if plan.rejected:
        rows = counted(sum(plan.rejected.values()), "row")
        lines.append(f"{rows} of the table rejected: {reasons(plan.rejected)}")
    if plan.removed:
        lines.append(f"planned, and kept, but not in the table now: {plan.removed:,}")
    return lines


def finished_line(manifest: ShardManifest) -> str:
    """One line about a finished shard."""
    seconds = sum(artifact.seconds for artifact in manifest.stages.values())
    aside = sum(manifest.rejected.values())
    return (
        f"shard {manifest.index:05d}: {manifest.kept:,} of {counted(manifest.images, 'image')} "
        f"kept, {counted(aside, 'row')} set aside, {seconds:,.1f} s"
    )


def failure_line(event: ShardFailed) -> str:
    """One line about a failed shard."""
    return f"shard {event.shard:05d} failed: {event.message}"


def reasons(counts: Mapping[str, int]) -> str:
    """Counts by reason, the commonest first."""
    items = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {reason}" for reason, count in items)


def counted(number: int, noun: str) -> str:
    """'1 shard', '2,000 shards'."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """'0.4 s', '12 s', '3 min 20 s', '4 h 10 min'."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, left = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {left} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"
