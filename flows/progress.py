"""The progress of a run: what its events say together, and the lines about them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence

from rich.text import Text

from flows.time_left import TimeLeft
from rudalle_lib.humanize import counted, duration, reasons
from rudalle_lib.prompts.plan import Plan
from rudalle_lib.report.usage import made_since
from rudalle_lib.schema.records import ShardManifest
from tasks.runtime.events import (
    Event,
    Noticed,
    Planned,
    RoundFinished,
    Selected,
    ShardFailed,
    ShardFinished,
    Step,
)


class ShardProgress:
    """Progress of every stage over all shards, in shards and fractions of shards."""

    def __init__(self, stages: Sequence[str]) -> None:
        self._stages = list(stages)
        self._fractions: defaultdict[str, dict[int, float]] = defaultdict(dict)

    def update(self, step: Step) -> None:
        """Record a step of a stage; all earlier stages of its shard count as completed."""
        for stage in self._stages[: self._stages.index(step.stage)]:
            self._fractions[stage][step.shard] = 1.0
        self._fractions[step.stage][step.shard] = step.done / max(step.total, 1)

    def finish(self, shard: int) -> None:
        """Record that a shard has finished or failed."""
        for stage in self._stages:
            self._fractions[stage][shard] = 1.0

    def completed(self, stage: str) -> float:
        """Return how many shards a stage has completed, fractions included."""
        return sum(self._fractions[stage].values())


class RunRate:
    """Counts shards and images of a run, and measures its speed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started: float | None = None
        self._begin = 0.0
        self._todo = self._shards = self._images = self._kept = self._rejected = self._drawn = 0

    def start(self, todo: int) -> None:
        """Start the clock for a run with `todo` unfinished shards."""
        self._todo, self._started, self._begin = todo, self._clock(), time.time()

    def seconds(self, manifest: ShardManifest) -> float:
        """Return how long this run has worked on a finished shard; earlier runs do not count."""
        return sum(artifact.seconds for artifact in made_since(manifest, self._begin).values())

    def resize(self, todo: int) -> None:
        """Change the number of unfinished shards."""
        self._todo = todo

    def record(self, manifest: ShardManifest | None) -> None:
        """Count a finished shard, or a failed one (None)."""
        self._shards += 1
        if manifest is not None:
            self._images += manifest.images
            if "generate" in made_since(manifest, self._begin):
                self._drawn += manifest.images - manifest.stages["generate"].reused
            self._kept += manifest.kept
            self._rejected += sum(manifest.rejected.values())

    def image_summary(self) -> str:
        """Return "12 of 64 images kept, 52 rejected, 3.1 images/s"."""
        return ", ".join(filter(None, [self.counts(), self.speed()]))

    def shard_summary(self) -> str:
        """Return "3 of 8 shards, 3.1 images/s"."""
        shards = f"{self._shards:,} of {counted(self._todo, 'shard')}"
        return ", ".join(filter(None, [shards, self.speed()]))

    def counts(self) -> str:
        """Return "12 of 64 images kept, 52 rejected"."""
        return f"{self._kept:,} of {self._images:,} images kept, {self._rejected:,} rejected"

    def speed(self) -> str:
        """Return "3.1 images/s"; empty while nothing has been drawn by this run."""
        elapsed = 0.0 if self._started is None else self._clock() - self._started
        return f"{self._drawn / elapsed:,.1f} images/s" if elapsed and self._drawn else ""


class RunProgress:
    """What the events of a run say together: shards, images, speed and time left.

    Args:
        stages: the stages of the run, in order.
        clock: returns seconds.
    """

    def __init__(self, stages: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.stages = tuple(stages)
        self.clock = clock
        self.rate = RunRate(clock)
        self.shards = ShardProgress(stages)
        self._left = TimeLeft(stages, clock)
        self._rounds: dict[int, int] = {}

    def note(self, event: Event) -> None:
        """Take account of an event."""
        if isinstance(event, Planned):
            self.rate.start(event.todo)
            self._left.start(event.prompts)
        elif isinstance(event, Selected):
            self.rate.resize(len(event.prompts))
            self._left.resize(event.prompts)
        elif isinstance(event, Step):
            self.shards.update(event)
            self._left.note(event)
        elif isinstance(event, RoundFinished):
            self._rounds[event.shard] = event.number
        elif isinstance(event, ShardFinished):
            self._settle(event.manifest.index, event.manifest)
        elif isinstance(event, ShardFailed):
            self._settle(event.shard, None)

    def time_left(self) -> str:
        """Return "about 2 min 5 s left"; empty if nothing is left, or nothing is known yet."""
        seconds = self._left.seconds()
        return f"about {duration(seconds)} left" if seconds else ""

    def rounds(self) -> str:
        """Return "2 rounds" of the shard in progress that has had most; empty without rounds."""
        return counted(max(self._rounds.values()), "round") if self._rounds else ""

    def _settle(self, shard: int, manifest: ShardManifest | None) -> None:
        self.shards.finish(shard)
        self._rounds.pop(shard, None)
        self._left.finish(shard)
        self.rate.record(manifest)


def messages(event: Event) -> list[Text]:
    """Return the lines that an event is worth beside bars, in the colours of a terminal."""
    if isinstance(event, Planned):
        return [Text(line) for line in plan_lines(event.plan, event.todo)]
    if isinstance(event, Selected):
        return [Text(selected_line(event))]
    if isinstance(event, Noticed):
        return [Text(event.message, style="yellow")]
    if isinstance(event, ShardFailed):
        return [Text(failure_line(event), style="red")]
    return []


def plan_lines(plan: Plan, todo: int) -> list[str]:
    """Return lines about a plan: prompts, rejected rows, shards."""
    prompts = f"{counted(plan.prompts, 'prompt')} in {counted(len(plan.shards), 'shard')}"
    new = f"{plan.new_prompts:,} new" if plan.new_prompts else "none new"
    lines = [f"{prompts}, {new}; {counted(todo, 'shard') if todo else 'nothing'} to do"]
    if plan.rejected:
        rows = counted(sum(plan.rejected.values()), "row")
        lines.append(f"{rows} of the prompt table rejected: {reasons(plan.rejected)}")
    if plan.removed:
        prompts = counted(plan.removed, "planned prompt")
        lines.append(f"{prompts} no longer in the prompt table; their images are kept")
    return lines


def selected_line(event: Selected) -> str:
    """Return a line about what rules that look across shards have decided."""
    shards = counted(len(event.prompts), "shard")
    return f"select keeps {event.kept:,} of {counted(event.images, 'image')}; {shards} to publish"


def finished_line(manifest: ShardManifest, seconds: float) -> str:
    """Return a line about a finished shard, on which a run has worked for some seconds."""
    return (
        f"shard {manifest.index:05d}: {manifest.kept:,} of {counted(manifest.images, 'image')} "
        f"kept, {sum(manifest.rejected.values()):,} rejected, {seconds:,.1f} s"
    )


def failure_line(event: ShardFailed) -> str:
    """Return a line about a failed shard."""
    return f"shard {event.shard:05d} failed: {event.message}"
