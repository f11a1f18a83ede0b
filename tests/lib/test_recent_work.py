"""A run whose recent work mostly fails is told from one with a few bad shards."""

from __future__ import annotations

import pytest

from rudalle_lib.recent_work import ENOUGH, RECENT, RecentWork
from rudalle_lib.records import DataFile, ShardManifest


def manifest(**rejected: int) -> ShardManifest:
    """A finished shard of 10 prompts and 40 images."""
    return ShardManifest(
        0, "", "", 10, 40, 20, rejected, 0, DataFile("", 0, ""), None, {}, ""
    )  # fmt: skip


def after(allowed: float, shards: list[ShardManifest | None]) -> RecentWork:
    work = RecentWork(allowed)
    for shard in shards:
        if shard is None:
            work.shard_failed()
        else:
            work.shard_finished(shard)
    return work


@pytest.mark.parametrize(
    ("allowed", "shards", "hopeless"),
    [
        (0.5, [None] * (ENOUGH - 1), False),
        (0.5, [None] * ENOUGH, True),
        (1.0, [None] * ENOUGH, False),
        (0.5, [None, manifest()] * 8, False),  # exactly as many as are allowed
        (0.5, [None, None, manifest()] * 3, True),
        (0.0, [manifest()] * 8 + [None], True),
        (0.5, [None] * 8 + [manifest()] * RECENT, False),  # long ago
        (0.5, [manifest(translation_failed=10)] * ENOUGH, True),
        (0.5, [manifest(decode_error=40)] * ENOUGH, True),
        (0.5, [manifest(decode_error=10)] * ENOUGH, False),
        (0.0, [manifest(below_threshold=40, not_in_best_k=40, too_long=9)] * ENOUGH, False),
    ],
)
def test_a_run_is_hopeless_if_more_fails_than_is_allowed(
    allowed: float, shards: list[ShardManifest | None], hopeless: bool
) -> None:
    assert after(allowed, shards).hopeless is hopeless


def test_the_verdict_names_the_share_the_setting_and_what_is_left() -> None:
    verdict = after(0.25, [None, None, None, manifest()]).verdict(left=7)
    assert "7 shards not tried: 75% of the work of the last 4 shards failed" in verdict
    assert "runtime.max_failed_share allows 25%" in verdict
