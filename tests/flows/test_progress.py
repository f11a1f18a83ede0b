"""What is shown of a run: bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from flows.progress import Bars, Lines, Pace, ShardProgress, View, counted, make_view, plan_lines
from rudalle_lib.planning import Plan
from rudalle_lib.records import DataFile, ShardManifest, ShardSpec, StageArtifact
from rudalle_lib.stages import STAGES
from tasks.progress import Event, Planned, ShardFailed, ShardFinished, Step

SHARDS = tuple(ShardSpec(index, f"plan/{index:05d}.parquet", 2) for index in range(2))
PLAN = Plan(
    shards=SHARDS,
    new_shards=(1,),
    new_prompts=2,
    new_images=8,
    table="prompts.csv",
    rows=7,
    rejected={"duplicate": 1, "empty_prompt": 2},
    removed=0,
)
MANIFEST = ShardManifest(
    index=0,
    fingerprint="f",
    config_digest="c",
    prompts=2,
    images=8,
    kept=3,
    rejected={"not_in_best_k": 5},
    image_bytes=10,
    metadata=DataFile("data/metadata/00000.parquet", 1, ""),
    rejects=None,
    stages={"generate": StageArtifact("u", "f", 8, 1.25)},
    finished="",
)
EVENTS: tuple[Event, ...] = (
    Planned(PLAN, 2),
    Step("generate", 0, 1, 4),
    ShardFinished(MANIFEST),
    ShardFailed(1, "decode: [bold]no[/bold]"),
)


def show(make: Callable[[Console], View], terminal: bool, *events: Event) -> str:
    screen = io.StringIO()
    with make(Console(file=screen, force_terminal=terminal, width=120)) as view:
        for event in events:
            view(event)
    return screen.getvalue()


def test_plain_lines_say_the_plan_every_shard_and_why_one_failed() -> None:
    assert show(lambda console: Lines(console, clock=lambda: 0.0), False, *EVENTS).splitlines() == [
        "4 prompts in 2 shards, 2 new; 2 shards to do",
        "3 rows of the table rejected: 2 empty_prompt, 1 duplicate",
        "shard 00000: 3 of 8 images kept, 5 rows set aside, 1.2 s; 1 of 2 shards",
        "shard 00001 failed: decode: [bold]no[/bold]",
    ]


def test_a_long_stage_gives_a_sign_of_life_every_half_minute() -> None:
    times = iter([0.0, 10.0, 31.0, 31.0, 40.0])
    steps = [Step("generate", 0, done, 4) for done in (1, 2, 3)]
    shown = show(lambda console: Lines(console, clock=lambda: next(times)), False, *steps)
    assert shown.splitlines() == ["shard 00000: generate 50%"]


def test_bars_show_every_stage_and_count_images() -> None:
    shown = show(lambda console: Bars(console, STAGES), True, *EVENTS)
    assert all(stage in shown for stage in STAGES)
    assert "3 of 8 images kept, 5 set aside" in shown
    assert "decode: [bold]no[/bold]" in shown


def test_pace_and_what_is_left_follow_from_what_is_done() -> None:
    times = iter([100.0])
    pace = Pace(lambda: next(times, 104.0))
    pace.plan(3)
    pace.finish(MANIFEST)
    assert pace.counts() == "3 of 8 images kept, 5 set aside, 2.0 images/s"
    assert pace.rest() == "1 of 3 shards, 2.0 images/s, about 8.0 s left"
    pace.finish(None)
    assert pace.rest() == "2 of 3 shards, 2.0 images/s, about 2.0 s left"


def test_nothing_to_do_draws_no_bars() -> None:
    shown = show(lambda console: Bars(console, STAGES), True, Planned(PLAN, 0))
    assert "nothing to do" in shown and "translate" not in shown


def test_a_step_tells_that_the_stages_before_it_are_over() -> None:
    progress = ShardProgress(STAGES)
    progress.step(Step("decode", 7, 1, 4))
    assert [progress.of(stage) for stage in STAGES] == [1, 1, 0.25, 0, 0, 0, 0]
    progress.finish(7)
    progress.step(Step("translate", 8, 0, 0))
    assert [progress.of(stage) for stage in STAGES] == [1] * len(STAGES)


@pytest.mark.parametrize(("terminal", "kind"), [(True, Bars), (False, Lines)])
def test_the_view_fits_where_it_is_shown(terminal: bool, kind: type[View]) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal)
    assert isinstance(make_view(console, {"cutout"}), kind)


def test_numbers_and_nouns_agree() -> None:
    assert [counted(n, "shard") for n in (0, 1, 2000)] == ["0 shards", "1 shard", "2,000 shards"]
    assert plan_lines(PLAN, 1)[0].endswith("1 shard to do")
