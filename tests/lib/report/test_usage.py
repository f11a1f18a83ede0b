"""Resources used by a run, from manifests with known times."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rudalle_lib.report.usage import (
    Span,
    made_since,
    max_concurrent_devices,
    measure_usage,
    usual_batch_rows,
)
from rudalle_lib.schema.records import DataFile, ShardManifest, StageArtifact

STARTED, FINISHED = "2026-01-01T00:00:00+00:00", "2026-01-01T00:01:40+00:00"


def artifact(seconds: float, until: str, devices: int = 1, ids: str = "") -> StageArtifact:
    moment = f"2026-01-01T00:{until}+00:00"
    return StageArtifact("u", "f", 8, seconds, 1.0, devices, moment, device_ids=ids)


def shard(**stages: StageArtifact) -> ShardManifest:
    published = StageArtifact("u", "f", 4, 5.0)  # holds no device
    metadata = DataFile("data/metadata/00000.parquet", 1, "")
    made = {**stages, "publish": published}
    return ShardManifest(0, "f", "c", 2, 8, 4, {}, 10, metadata, None, made, "")


def test_a_device_in_use_for_half_of_the_run_is_idle_for_the_other_half() -> None:
    manifests = [
        shard(generate=artifact(30, "00:30"), decode=artifact(10, "00:40")),
        shard(generate=artifact(10, "00:50")),
    ]
    usage = measure_usage(manifests, STARTED, FINISHED, price=3.6)
    assert (usage.seconds, usage.devices, usage.idle_share) == (100, 1, 0.5)
    assert usage.images_per_second == 0.16
    assert usage.device_hours == pytest.approx(50 / 3600, abs=1e-6)
    assert usage.cost == pytest.approx(0.05)
    assert usage.cost_per_published == pytest.approx(0.05 / 8)


def test_concurrent_devices_are_counted_and_stages_may_hold_several() -> None:
    manifests = [shard(generate=artifact(40, "00:50")), shard(generate=artifact(40, "01:00"))]
    assert measure_usage(manifests, STARTED, FINISHED).devices == 2
    assert measure_usage(manifests, STARTED, FINISHED).idle_share == 0.6
    both = [shard(generate=artifact(50, "00:50", devices=2))]
    assert measure_usage(both, STARTED, FINISHED).idle_share == 0.5


def test_a_gpu_that_draws_and_decodes_at_once_is_one_device_and_is_paid_once() -> None:
    manifests = [
        shard(generate=artifact(40, "00:40", ids="a"), decode=artifact(20, "01:00", ids="a")),
        shard(generate=artifact(40, "01:20", ids="a"), decode=artifact(10, "01:30", ids="a")),
    ]
    usage = measure_usage(manifests, STARTED, FINISHED, price=3.6)
    assert (usage.devices, usage.idle_share) == (1, 0.1)
    assert usage.device_hours == pytest.approx(90 / 3600, abs=1e-6)
    assert usage.cost == pytest.approx(0.09)
    assert usage.stages["decode"] == 30


def test_devices_with_other_ids_are_other_devices() -> None:
    manifests = [
        shard(generate=artifact(50, "00:50", ids="a"), decode=artifact(25, "01:15", ids="a")),
        shard(generate=artifact(50, "00:50", ids="b"), decode=artifact(25, "01:15", ids="b")),
    ]
    usage = measure_usage(manifests, STARTED, FINISHED)
    assert (usage.devices, usage.idle_share) == (2, 0.25)
    split = [shard(generate=artifact(50, "00:50", devices=2, ids="a b"))]
    usage = measure_usage([*split, shard(decode=artifact(25, "00:40", ids="b"))], STARTED, FINISHED)
    assert (usage.devices, usage.idle_share) == (2, 0.5)


def test_shards_of_an_earlier_run_count_only_for_the_cost() -> None:
    manifests = [shard(generate=artifact(36, "00:36"))]
    later = measure_usage(manifests, "2026-01-01T00:01:00+00:00", FINISHED, price=1.0)
    assert (later.devices, later.idle_share, later.images_per_second) == (0, None, None)
    assert later.cost == pytest.approx(0.01)


def test_what_a_run_did_is_told_apart_from_earlier_runs() -> None:
    drawn = shard(generate=artifact(30, "00:30"), decode=artifact(10, "00:40"))
    usage = measure_usage([drawn], STARTED, FINISHED)
    assert usage.drawn == 8 and usage.stages == {"generate": 30, "decode": 10}
    again = replace(drawn, finished="2026-01-01T00:01:30+00:00")
    later = measure_usage([again], "2026-01-01T00:00:35+00:00", FINISHED)
    assert later.drawn == 0 and later.stages == {"decode": 10, "publish": 5}
    assert set(made_since(again, 0.0)) == {"generate", "decode", "publish"}


def test_without_a_price_or_images_there_is_no_cost() -> None:
    assert measure_usage([], STARTED, FINISHED, price=1.0).cost_per_published is None
    assert measure_usage([shard()], STARTED, FINISHED).cost is None
    none = replace(shard(generate=artifact(36, "00:36")), kept=0)
    assert measure_usage([none], STARTED, FINISHED, 1.0).cost_per_published is None


def test_consecutive_stages_use_one_device() -> None:
    """A stage may appear to start a few milliseconds before the previous one has ended."""
    assert max_concurrent_devices([Span(0, 10.004, 1), Span(10.0, 12, 1), Span(12, 12.001, 1)]) == 1


def test_the_usual_rows_are_those_of_most_shards() -> None:
    def drawn(rows: int) -> ShardManifest:
        return shard(generate=replace(artifact(1, "00:30"), batch_rows=rows))

    assert usual_batch_rows([]) == usual_batch_rows([shard(), drawn(0)]) == 0
    assert usual_batch_rows([drawn(64), drawn(0), drawn(0), drawn(0), drawn(32), drawn(64)]) == 64
