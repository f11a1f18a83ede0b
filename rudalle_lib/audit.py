"""The audit of an output: whether what lies there is what its manifests say, byte for byte.

A run trusts the manifests; the audit trusts nothing. It reads every file: counts against rows,
digests against bytes, pictures against their decoder, rows against the plan, and every path against
what names it. What it finds are `Fault`s. `reopen_faulty` makes the next run do their shards again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from rudalle_lib import layout
from rudalle_lib.errors import RudalleError, ShardError, StorageError
from rudalle_lib.faults import Audit, Known, read_sealed
from rudalle_lib.lease import hold
from rudalle_lib.manifest import read_run_manifest, totals
from rudalle_lib.recorded import recorded_config, recorded_weights
from rudalle_lib.report import count_plan_rejects
from rudalle_lib.shard_audit import check_planned
from rudalle_lib.storage import Storage

Told = Callable[[int, int], None]


def audit_output(storage: Storage, told: Told = lambda done, total: None) -> Audit:
    """Check all that lies in an output; runs no network.

    Args:
        storage: the output.
        told: called with shards that are done, and all.

    Raises:
        StorageError: the output cannot be read, or holds no run.
    """
    paths = set(storage.list())
    planned = sorted(path for path in paths if path.startswith(f"{layout.PLAN_FOLDER}/"))
    if not planned and layout.RUN_MANIFEST not in paths:
        raise StorageError(
            f"There is no run in {storage.public_path()}: expected a folder plan/ with Parquet "
            "files in it. Give the output of `rudalle-flows run`."
        )
    audit, known = Audit(), Known()
    _read_run(storage, audit)
    for done, path in enumerate(planned):
        told(done, len(planned))
        check_planned(storage, path, audit, known)
    _check_orphans(paths, audit, known)
    _check_run(storage, len(planned), audit)
    _check_plan_rejects(storage, paths, audit)
    return audit


def reopen_faulty(storage: Storage, audit: Audit, lease_seconds: float) -> list[int]:
    """Let the next run do every shard with a fault again; which those are.

    Their manifests are deleted, and with them the shards; what is whole in `stages/` is used again.

    Raises:
        LeaseError: a run is under way.
        StorageError: nothing can be deleted.
    """
    shards = sorted({fault.shard for fault in audit.faults if fault.shard is not None})
    with hold(storage, lease_seconds):
        for index in shards:
            storage.delete(layout.shard_manifest_path(index))
        if any(fault.path == layout.RUN_MANIFEST for fault in audit.faults):
            storage.delete(layout.RUN_MANIFEST)
    return shards


def _check_orphans(paths: set[str], audit: Audit, known: Known) -> None:
    """Files that nothing names; those of shards that are not finished may yet be named."""
    for path in sorted(paths - known.files):
        folder, _, name = path.rpartition("/")
        index = layout.index_of(folder) if folder.startswith(layout.IMAGES_FOLDER) else None
        index = layout.index_of(name) if index is None else index
        ours = path in (layout.RUN_MANIFEST, layout.CARD, layout.CONTACT_SHEET, layout.METRICS)
        ours = ours or path.startswith(("gallery/", f"{layout.LEASE_FOLDER}/"))
        ours = ours or path.startswith(f"{layout.REJECTS_FOLDER}/plan-")
        if ours or index in known.open_shards:
            continue
        finished = {manifest.index for manifest in audit.manifests}
        audit.add("orphan", path, "nothing names it", index if index in finished else None)


def _read_run(storage: Storage, audit: Audit) -> None:
    try:
        audit.run = read_run_manifest(storage)
    except ShardError as error:
        audit.add("damaged", layout.RUN_MANIFEST, str(error))
        return
    if audit.run is None:
        audit.add("unfinished", layout.RUN_MANIFEST, "no run has ended here")
        return
    try:
        audit.config = recorded_config(storage, audit.run)
        recorded_weights(audit.run, audit.config)
    except RudalleError as error:
        audit.config = None
        audit.notes.append(str(error))


def _check_run(storage: Storage, planned: int, audit: Audit) -> None:
    if audit.run is None:
        return
    if audit.run.shards_planned != planned:
        detail = f"it says {audit.run.shards_planned:,} shards, {planned:,} are planned"
        audit.add("count", layout.RUN_MANIFEST, detail)
    with suppress(StorageError):  # a fault of its own, found by `_check_plan_rejects`
        sums = totals(audit.manifests, count_plan_rejects(storage))
        if len(audit.manifests) == planned and audit.run.totals != sums:
            audit.add("count", layout.RUN_MANIFEST, "its totals are not the sums of the shards")


def _check_plan_rejects(storage: Storage, paths: set[str], audit: Audit) -> None:
    for path in sorted(paths):
        if path.startswith(f"{layout.REJECTS_FOLDER}/plan-"):
            audit.checked["tables"] += 1
            read_sealed(storage, path, audit, None)
