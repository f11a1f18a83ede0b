"""Decisions by hand are added to an output."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rudalle_lib.config.sections import GenerateConfig
from rudalle_lib.dataset import layout
from rudalle_lib.dataset.curation import Curation, read_curation, render_curation
from rudalle_lib.dataset.lease import hold
from rudalle_lib.dataset.manifests import no_run_error, read_run_manifest
from rudalle_lib.pipeline.recorded_run import recorded_config
from rudalle_lib.prompts.plan import read_plan
from rudalle_lib.schema.decisions import KEEP, REJECT
from rudalle_lib.schema.ranges import IMAGES
from rudalle_lib.selection.by_hand import find_shards
from rudalle_lib.storage.storage import Storage


@dataclass(frozen=True)
class Curated:
    """What an output holds after decisions were added.

    Attributes:
        kept, rejected: numbers of decisions of each kind.
        added: decisions about images that had none.
        changed: decisions that differ from those before.
    """

    kept: int
    rejected: int
    added: int
    changed: int

    @property
    def decisions(self) -> int:
        """Number of all decisions."""
        return self.kept + self.rejected


def add_decisions(
    storage: Storage, given: Curation, replace: bool, lease_seconds: float
) -> Curated:
    """Add decisions to `curation.csv`; of two about one image, the new one counts.

    Args:
        storage: the output.
        given: the decisions.
        replace: forget the decisions that the output has.
        lease_seconds: duration of the lease that is held meanwhile.

    Raises:
        ConfigError: a decision is about an image that the output cannot have.
        LeaseError: a run is writing to the output.
        StorageError: there is no run in the output.
        ShardError: a damaged manifest or plan file.
    """
    plan, run = read_plan(storage), read_run_manifest(storage)
    if not plan:
        raise no_run_error(storage)
    most = GenerateConfig(images=int(IMAGES.maximum))
    section = most if run is None else recorded_config(storage, run).generate
    find_shards(given, storage, plan, section)
    with hold(storage, lease_seconds):
        before = {} if replace else dict(read_curation(storage).decisions)
        after = {**before, **given.decisions}
        storage.commit(layout.CURATION, render_curation(after))
    counts = Counter(decision for decision, _ in after.values())
    added = sum(name not in before for name in given.decisions)
    changed = sum(name in before and before[name] != one for name, one in given.decisions.items())
    return Curated(counts[KEEP], counts[REJECT], added, changed)
