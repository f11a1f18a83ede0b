"""How much longer a run takes, from the progress of all its stages.

Shards are in flight together, so the first one is finished late, and all are finished soon after.
Counting finished shards would be wrong by several times. Here every stage has a cost, the seconds
per prompt that its steps have taken so far. Stages share the devices: the time between two steps,
whatever their stages, is that of the later one. So costs add up, on one device and on several.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from tasks.runtime.events import Step

USUAL_COSTS = {
    "translate": 0.02,
    "generate": 1.0,
    "decode": 0.55,
    "score": 0.15,
    "upscale": 0.4,
    "cutout": 0.2,
    "publish": 0.05,
}
"""Costs of stages relative to each other, as in the demo, for stages that have not started. They
matter only to runs of a few shards: in others all stages have started after a third of the time."""


class TimeLeft:
    """Estimates the seconds until all shards are published.

    Args:
        stages: the stages of the run, in order.
        clock: returns seconds.
    """

    def __init__(self, stages: Sequence[str], clock: Callable[[], float]) -> None:
        self._stages = list(stages)
        self._clock = clock
        self._prompts: dict[int, int] = {}
        self._last = 0.0
        self._seconds: dict[str, float] = {}
        self._worked: defaultdict[str, float] = defaultdict(float)
        self._done: defaultdict[str, dict[int, float]] = defaultdict(dict)

    def start(self, prompts: Mapping[int, int]) -> None:
        """Start the clock.

        Args:
            prompts: number of prompts of every shard that is to be processed.
        """
        self._prompts, self._last = dict(prompts), self._clock()

    def resize(self, prompts: Mapping[int, int]) -> None:
        """Change the shards that are to be processed."""
        self._prompts = dict(prompts)

    def note(self, step: Step) -> None:
        """Note a step of a stage; the earlier stages of its shard count as done."""
        place = self._stages.index(step.stage)
        for stage in self._stages[:place]:
            self._done[stage][step.shard] = 1.0
        self._advance(step.stage, step.shard, step.done / max(step.total, 1))

    def finish(self, shard: int) -> None:
        """Note that a shard is published, or has failed."""
        for stage in self._stages[:-1]:
            self._done[stage][shard] = 1.0
        self._advance(self._stages[-1], shard, 1.0)

    def seconds(self) -> float | None:
        """Return the estimate; None if nothing is known yet."""
        known = {
            stage: seconds / self._worked[stage]
            for stage, seconds in self._seconds.items()
            if self._worked[stage] > 0
        }
        usual = sum(USUAL_COSTS[stage] for stage in known)
        if not usual or not sum(known.values()):
            return None
        scale = sum(known.values()) / usual
        return sum(
            known.get(stage, scale * USUAL_COSTS[stage]) * self._left(stage)
            for stage in self._stages
        )

    def _advance(self, stage: str, shard: int, share: float) -> None:
        now, before = self._clock(), self._done[stage].get(shard, 0.0)
        if stage in self._seconds:
            self._seconds[stage] += now - self._last
            self._worked[stage] += self._prompts.get(shard, 1) * max(share - before, 0.0)
        else:  # the first step of a stage includes the loading of its model
            self._seconds[stage] = 0.0
        self._done[stage][shard], self._last = share, now

    def _left(self, stage: str) -> float:
        """Return the prompts that a stage has not processed."""
        done = self._done[stage]
        return sum(
            prompts * (1.0 - done.get(shard, 0.0)) for shard, prompts in self._prompts.items()
        )
