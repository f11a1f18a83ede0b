"""The progress of a run, as its events tell it."""

from __future__ import annotations

from dataclasses import replace

from flows.progress import RunProgress, RunRate, ShardProgress, messages, plan_lines
from rudalle_lib.pipeline.stages import STAGE_NAMES
from rudalle_lib.schema.records import StageArtifact
from tasks.runtime.events import Noticed, Planned, ShardFailed, ShardFinished, Step
from tests.support.run_events import MANIFEST, PLAN


def test_a_run_that_draws_nothing_has_no_rate() -> None:
    stages = {
        "generate": replace(MANIFEST.stages["generate"], until="2021-11-02T00:00:00+00:00"),
        "publish": StageArtifact("u", "f", 3, 0.5),
    }
    published = replace(MANIFEST, stages=stages, finished="2999-01-01T00:00:00+00:00")
    times = iter([100.0])
    rate = RunRate(lambda: next(times, 104.0))
    rate.start(3)
    rate.record(published)
    assert rate.image_summary() == "3 of 8 images kept, 5 rejected"
    assert rate.shard_summary() == "1 of 3 shards"
    assert rate.seconds(published) == 0.5
    rate.record(MANIFEST)
    assert rate.image_summary() == "6 of 16 images kept, 10 rejected, 2.0 images/s"


def test_the_rate_follows_from_finished_shards() -> None:
    times = iter([100.0])
    rate = RunRate(lambda: next(times, 104.0))
    rate.start(3)
    rate.record(MANIFEST)
    assert rate.image_summary() == "3 of 8 images kept, 5 rejected, 2.0 images/s"
    assert rate.shard_summary() == "1 of 3 shards, 2.0 images/s"
    rate.record(None)
    assert rate.shard_summary() == "2 of 3 shards, 2.0 images/s"


def test_a_step_completes_the_earlier_stages_of_its_shard() -> None:
    progress = ShardProgress(STAGE_NAMES)
    progress.update(Step("decode", 7, 1, 4))
    assert [progress.completed(stage) for stage in STAGE_NAMES] == [1, 1, 0.25, 0, 0, 0, 0]
    progress.finish(7)
    progress.update(Step("translate", 8, 0, 0))
    assert [progress.completed(stage) for stage in STAGE_NAMES] == [1] * len(STAGE_NAMES)


def test_plan_lines_mention_removed_prompts() -> None:
    assert plan_lines(PLAN, 1)[0].endswith("1 shard to do")
    lines = plan_lines(replace(PLAN, removed=1_000), 0)
    assert lines[-1] == "1,000 planned prompts no longer in the prompt table; their images are kept"


def test_events_move_shards_images_and_the_time_left_together() -> None:
    now = [0.0]
    progress = RunProgress(["generate", "publish"], lambda: now[0])
    assert progress.time_left() == ""
    progress.note(Planned(PLAN, 2, {0: 2, 1: 2}))
    for now[0], done in ((5.0, 1), (10.0, 2)):
        progress.note(Step("generate", 0, done, 4))
    assert progress.shards.completed("generate") == 0.5
    assert progress.time_left().startswith("about ")
    progress.note(ShardFinished(MANIFEST))
    progress.note(ShardFailed(1, "decode: no"))
    assert progress.shards.completed("publish") == 2 and progress.time_left() == ""
    assert progress.rate.shard_summary() == "2 of 2 shards, 0.8 images/s"


def test_messages_have_the_colour_of_what_they_say() -> None:
    found = [messages(event) for event in (Noticed("odd"), ShardFailed(3, "decode: no"))]
    assert [(line.plain, line.style) for (line,) in found] == [
        ("odd", "yellow"),
        ("shard 00003 failed: decode: no", "red"),
    ]
    assert messages(Step("generate", 0, 1, 2)) == messages(ShardFinished(MANIFEST)) == []
