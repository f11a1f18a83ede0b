"""Which shards of a plan are left for runs that share an output, and which to take next."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.layout import ShardRange
from rudalle_lib.dataset.manifests import read_shard_manifests
from rudalle_lib.pipeline.diff import compare
from rudalle_lib.pipeline.stages import fingerprints
from rudalle_lib.schema.records import ShardSpec
from rudalle_lib.selection.choices import load_choices
from rudalle_lib.storage.storage import Storage

ANY_SHARD = ShardSpec(0, "", 0, "", True)
"""A shard that no plan has: its fingerprint stands for all that is not in the plan."""


class OpenShards:
    """The unfinished shards of a plan that no longer changes.

    Attributes:
        choices: what decides about their images, beside the settings of `score`.

    Args:
        config: the run.
        weights: digests of the weights by stage.
        storage: the output.
        shards: all planned shards.
    """

    def __init__(
        self,
        config: RunConfig,
        weights: Mapping[str, str],
        storage: Storage,
        shards: Sequence[ShardSpec],
    ) -> None:
        self._config, self._weights, self._storage = config, weights, storage
        self._shards = {shard.index: shard for shard in shards}
        self.choices = load_choices(config, storage, shards)

    def find(self, notice: Callable[[str], None] = lambda _: None) -> list[ShardSpec]:
        """Those that are unfinished now, in order.

        Manifests of shards that were finished before are not read again: while anybody works on
        shards, nobody makes finished ones with other settings.

        Args:
            notice: called with a sentence per damaged manifest, whose shard is unfinished then.
        """
        manifests = read_shard_manifests(self._storage, notice, self._shards.__contains__)
        shards = list(self._shards.values())
        todo = compare(self._config, self._weights, shards, manifests, self.choices).todo
        self._shards = {shard.index: shard for shard in todo}
        return todo


def settings_digest(config: RunConfig, weights: Mapping[str, str]) -> str:
    """A digest of everything that the images of a run depend on, apart from its prompts."""
    return fingerprints(config, weights, ANY_SHARD)["publish"]


def next_shards(
    todo: Collection[int], busy: Sequence[ShardRange], most: int, at_once: int
) -> ShardRange | None:
    """The shards that a run should take: the first that nobody works on, in one range.

    The fewer are left, the fewer are taken, so that all runs end at about the same time.

    Args:
        todo: indices of unfinished shards.
        busy: shards that other runs work on.
        most: how many unfinished shards to take at most.
        at_once: how many the run has in progress at the same time.

    Returns:
        None if there are none.
    """
    open_ = sorted(index for index in todo if not any(shards.holds(index) for shards in busy))
    if not open_:
        return None
    fair = len(open_) // (2 * (len(busy) + 1))
    count = max(1, min(most, max(fair, at_once if not busy else 1)))
    first, last = open_[0], open_[0]
    for index in open_[1:count]:
        if any(shards.overlaps(ShardRange(first, index)) for shards in busy):
            break
        last = index
    return ShardRange(first, last)
