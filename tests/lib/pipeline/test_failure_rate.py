"""The failure rate: a run that mostly fails stops, and one with a few bad shards goes on."""

from __future__ import annotations

import pytest

from rudalle_lib.pipeline.failure_rate import MIN_SHARDS, WINDOW, FailureRate
from rudalle_lib.schema.records import DataFile, ShardManifest


def manifest(**rejected: int) -> ShardManifest:
    """A finished shard of 10 prompts and 40 images."""
    return ShardManifest(
        0, "", "", 10, 40, 20, rejected, 0, DataFile("", 0, ""), None, {}, ""
    )  # fmt: skip


def rate_after(allowed: float, shards: list[ShardManifest | None]) -> FailureRate:
    rate = FailureRate(allowed)
    for shard in shards:
        if shard is None:
            rate.shard_failed()
        else:
            rate.shard_finished(shard)
    return rate


@pytest.mark.parametrize(
    ("allowed", "shards", "too_high"),
    [
        (0.5, [None] * (MIN_SHARDS - 1), False),
        (0.5, [None] * MIN_SHARDS, True),
        (1.0, [None] * MIN_SHARDS, False),
        (0.5, [None, manifest()] * 8, False),  # exactly as many as are allowed
        (0.5, [None, None, manifest()] * 3, True),
        (0.0, [manifest()] * 8 + [None], True),
        (0.5, [None] * 8 + [manifest()] * WINDOW, False),  # long ago
        (0.5, [manifest(translation_failed=10)] * MIN_SHARDS, True),
        (0.5, [manifest(decode_error=40)] * MIN_SHARDS, True),
        (0.5, [manifest(decode_error=10)] * MIN_SHARDS, False),
        (0.0, [manifest(below_threshold=40, not_in_best_k=40, too_long=9)] * MIN_SHARDS, False),
    ],
)
def test_the_rate_is_too_high_if_more_fails_than_is_allowed(
    allowed: float, shards: list[ShardManifest | None], too_high: bool
) -> None:
    assert rate_after(allowed, shards).too_high is too_high


def test_the_explanation_names_the_rate_the_setting_and_the_shards_left() -> None:
    sentence = rate_after(0.25, [None, None, None, manifest()]).explain(left=7)
    assert "7 shards not started: 75% of the work of the last 4 shards failed" in sentence
    assert "runtime.max_failed_share allows 25%" in sentence
