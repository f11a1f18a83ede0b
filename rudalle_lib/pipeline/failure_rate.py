"""The failure rate of a run's recent work, and whether the run should stop because of it.

A night of shards that all fail in the same way costs as much as a good one. So a run that fails too
often stops, says why, and keeps what is finished.
"""

from __future__ import annotations

from collections import deque

from rudalle_lib.schema.records import ShardManifest

WINDOW = 16
"""Shards that the rate is computed over."""

MIN_SHARDS = 4
"""Shards that must have finished or failed before a rate is reported."""


class FailureRate:
    """The share of the last shards' work that failed, against the share that is allowed.

    A shard that failed counts as 1. A finished shard counts as its share of prompts without a
    translation or of images that could not be decoded, whichever is larger. Images that were drawn
    and not selected, and rows of the table that were never usable, are not failures.
    """

    def __init__(self, allowed: float) -> None:
        """Start with nothing finished; `allowed` is a share in [0, 1]."""
        self._allowed = allowed
        self._shares: deque[float] = deque(maxlen=WINDOW)

    def shard_failed(self) -> None:
        """Count a shard that failed, retries included."""
        self._shares.append(1.0)

    def shard_scored(self) -> None:
        """Count a shard that was drawn and scored, and is published later."""
        self._shares.append(0.0)

    def shard_finished(self, manifest: ShardManifest) -> None:
        """Count a shard that was published."""
        untranslated = manifest.rejected.get("translation_failed", 0) / max(manifest.prompts, 1)
        undecoded = manifest.rejected.get("decode_error", 0) / max(manifest.images, 1)
        self._shares.append(max(untranslated, undecoded))

    @property
    def rate(self) -> float:
        """The share of recent work that failed, in [0, 1]; 0 while there is too little of it."""
        if len(self._shares) < MIN_SHARDS:
            return 0.0
        return sum(self._shares) / len(self._shares)

    @property
    def too_high(self) -> bool:
        """Whether more fails than is allowed."""
        return self.rate > self._allowed

    def explain(self, left: int) -> str:
        """Why the run stops with `left` shards not started, and what to do."""
        return (
            f"Stopped early, {left} shards not started: {self.rate:.0%} of the work of the last "
            f"{len(self._shares)} shards failed, runtime.max_failed_share allows "
            f"{self._allowed:.0%}. Finished shards are safe; remove the cause and run again."
        )
