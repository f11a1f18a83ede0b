"""The status of an output, read from storage alone."""

from __future__ import annotations

from dataclasses import dataclass

from rudalle_lib.dataset import layout
from rudalle_lib.dataset.manifests import (
    no_run_error,
    read_run_manifest,
    read_shard_manifests,
    totals,
)
from rudalle_lib.dataset.rejects import count_plan_rejects
from rudalle_lib.schema.records import RunManifest, RunTotals
from rudalle_lib.storage.storage import Storage


@dataclass(frozen=True)
class Status:
    """The status of an output.

    Attributes:
        planned: number of planned shards.
        totals: sums over finished shards.
        run: manifest of the latest finished run, if there is one.
    """

    planned: int
    totals: RunTotals
    run: RunManifest | None


def read_status(storage: Storage) -> Status:
    """Read the status of an output.

    Raises:
        StorageError: it cannot be read, or no run has started there.
        ShardError: a damaged manifest.
    """
    planned = [
        path
        for path in storage.list(layout.PLAN_FOLDER)
        if layout.index_of(path, "plan") is not None
    ]
    run = read_run_manifest(storage)
    if not planned and run is None:
        raise no_run_error(storage)
    sums = totals(read_shard_manifests(storage), count_plan_rejects(storage))
    return Status(len(planned), sums, run)
