"""Whether a run is worth going on with: how much of its recent work came to nothing.

A night of shards that all fail the same way costs as much as a good one. So a run that has become
hopeless stops, says why, and leaves what is finished where it is.
"""

from __future__ import annotations

from collections import deque

from rudalle_lib.records import ShardManifest

#: How many shards back "recent" goes, and from how many on there is something to judge.
RECENT = 16
ENOUGH = 4


class RecentWork:
    """The failures of the last shards, against the share of them that is allowed.

    Failed are: a shard that failed as a whole; and of a finished one, prompts without translation
    or pictures without pixels, whichever is the larger share. What was drawn and not chosen, and
    rows that were never usable, are no failures.
    """

    def __init__(self, allowed_share: float) -> None:
        self._allowed = allowed_share
        self._shares: deque[float] = deque(maxlen=RECENT)

    def shard_failed(self) -> None:
        """A shard failed, retries included."""
        self._shares.append(1.0)

    def shard_finished(self, manifest: ShardManifest) -> None:
        """A shard is published."""
        untranslated = manifest.rejected.get("translation_failed", 0) / max(manifest.prompts, 1)
        undecoded = manifest.rejected.get("decode_error", 0) / max(manifest.images, 1)
        self._shares.append(max(untranslated, undecoded))

    @property
    def failed_share(self) -> float:
        """The share of the recent work that failed, 0 to 1; 0 as long as there is too little."""
        if len(self._shares) < ENOUGH:
            return 0.0
        return sum(self._shares) / len(self._shares)

    @property
    def hopeless(self) -> bool:
        """Whether more fails than is allowed."""
        return self.failed_share > self._allowed

    def verdict(self, left: int) -> str:
        """Why the run stops with `left` shards not tried, and what to do."""
        return (
            f"Stopped early, {left} shards not tried: {self.failed_share:.0%} of the work of the "
            f"last {len(self._shares)} shards failed, runtime.max_failed_share allows "
            f"{self._allowed:.0%}. What is finished is safe; remove the cause and run again."
        )
