"""How far a run is, from storage alone."""

from __future__ import annotations

from dataclasses import dataclass

from rudalle_lib import layout
from rudalle_lib.errors import StorageError
from rudalle_lib.manifest import read_run_manifest, read_shard_manifests, totals
from rudalle_lib.records import RunManifest, RunTotals
from rudalle_lib.report import count_plan_rejects
from rudalle_lib.storage import Storage


@dataclass(frozen=True)
class Status:
    """Shards that are planned, sums over those that are finished, the last run that ended."""

    planned: int
    totals: RunTotals
    run: RunManifest | None


def read_status(storage: Storage) -> Status:
    """Read the status of an output.

    Raises:
        StorageError: it cannot be read, or no run has begun there.
    """
    planned = [
        path for path in storage.list(layout.PLAN_FOLDER) if layout.index_of(path) is not None
    ]
    run = read_run_manifest(storage)
    if not planned and run is None:
        raise StorageError(
            f"There is no run in {storage.public_path()}: expected a folder plan/ with Parquet "
            "files in it. Give the output of `rudalle-flows run`."
        )
    sums = totals(read_shard_manifests(storage), count_plan_rejects(storage))
    return Status(len(planned), sums, run)
