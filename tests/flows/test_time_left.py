"""Estimates of the time left, on a recorded run of the demo and on made-up larger ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from flows.time_left import USUAL_COSTS, TimeLeft
from rudalle_lib.pipeline.stages import STAGE_NAMES
from tasks.runtime.events import Step

RECORDED = Path(__file__).resolve().parents[1] / "data/demo_run.jsonl"
"""Events of a run of the demo on two CPU cores, each after the seconds of processor time that its
process had used: other programs on the machine make no difference to those."""

DEMO = [stage for stage in STAGE_NAMES if stage != "cutout"]
PROMPTS = {0: 24, 1: 24, 2: 16}
Event = tuple[float, str, int, int, int]
"""When, which stage or "finished", shard, done, total."""


def recorded() -> list[Event]:
    events = []
    for line in RECORDED.read_text("utf-8").splitlines():
        when, what, *numbers = json.loads(line)
        if what == "finished":
            events.append((when, what, numbers[0], 1, 1))
        elif what != "planned":
            events.append((when, what, *numbers))
    return events


def made_up(costs: Mapping[str, float], shards: int, loading: float) -> list[Event]:
    """Two shards in flight: each stage of both, one after the other; models are loaded once."""
    events: list[Event] = []
    now = 0.0
    for first in range(0, shards, 2):
        for stage, cost in costs.items():
            for shard in (first, first + 1):
                now += 0.0 if any(event[1] == stage for event in events) else loading
                for done in range(1, 5):
                    now += cost / 4
                    events.append((now, stage, shard, done, 4))
        events += [(now, "finished", shard, 1, 1) for shard in (first, first + 1)]
    return events


def estimates(
    events: list[Event], prompts: Mapping[int, int]
) -> Iterator[tuple[float, float, float | None]]:
    """After each event: the share of the time that has passed, what is left, and the estimate."""
    now = [0.0]
    left = TimeLeft(DEMO, lambda: now[0])
    left.start(prompts)
    end = max(event[0] for event in events)
    for when, what, shard, done, total in events:
        now[0] = when
        if what == "finished":
            left.finish(shard)
        else:
            left.note(Step(what, shard, done, total))
        yield when / end, end - when, left.seconds()


RUNS: dict[str, Any] = {
    "the demo": (recorded(), PROMPTS),
    "a large decoder on a GPU": (
        made_up({"generate": 60.0, "decode": 2.0, "score": 0.5, "upscale": 3.0}, 12, 20.0),
        dict.fromkeys(range(12), 64),
    ),
    "upscaling takes longest": (
        made_up({"generate": 5.0, "decode": 1.0, "score": 0.2, "upscale": 30.0}, 12, 4.0),
        dict.fromkeys(range(12), 8),
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_after_a_third_the_error_is_below_a_quarter(name: str) -> None:
    """Of what is left; in the last tenth, of a tenth of the whole."""
    events, prompts = RUNS[name]
    whole = max(event[0] for event in events)
    for share, left, estimate in estimates(events, prompts):
        if share >= 1 / 3:
            assert estimate is not None
            assert abs(estimate - left) < max(0.25 * left, 0.025 * whole), (share, left, estimate)


def test_at_the_end_nothing_is_left() -> None:
    *_, (share, left, estimate) = estimates(recorded(), PROMPTS)
    assert (share, left, estimate) == (1.0, 0.0, 0.0)


def test_before_the_second_step_nothing_is_known() -> None:
    first = recorded()[0]
    assert [estimate for *_, estimate in estimates([first], PROMPTS)] == [None]


def test_work_that_an_earlier_run_has_done_is_not_counted() -> None:
    """Shard 0 begins with its last stage: all before it are done."""
    now = [0.0]
    left = TimeLeft(["generate", "upscale"], lambda: now[0])
    left.start({0: 1})
    for now[0], done in ((1.0, 1), (2.0, 2), (3.0, 3)):
        left.note(Step("upscale", 0, done, 4))
    assert left.seconds() == pytest.approx(1.0)


def test_every_stage_has_a_usual_cost() -> None:
    assert list(USUAL_COSTS) == list(STAGE_NAMES)
