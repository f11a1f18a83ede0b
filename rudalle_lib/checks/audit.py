"""The audit of an output: checks byte for byte that its files are what its manifests say.

A run trusts the manifests; the audit trusts nothing. It reads every file and compares counts with
rows, bytes with digests, rows with the plan and paths with the references to them, and it decodes
every image. Differences are `Fault`s. `reopen_faulty` makes the next run redo the faulty shards.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from rudalle_lib.checks.audit_shard import check_shard
from rudalle_lib.checks.faults import Audit, Seen, read_content, read_sealed
from rudalle_lib.dataset import layout
from rudalle_lib.dataset.curation import curation_digest
from rudalle_lib.dataset.lease import hold
from rudalle_lib.dataset.leftovers import SHARD_KINDS
from rudalle_lib.dataset.lineage import read_lineage
from rudalle_lib.dataset.manifests import (
    delete_shard_manifests,
    finished_shards,
    no_run_error,
    read_run_manifest,
    totals,
)
from rudalle_lib.dataset.rejects import count_plan_rejects
from rudalle_lib.errors import DamagedError, RudalleError, ShardError, StorageError
from rudalle_lib.humanize import counted
from rudalle_lib.pipeline.diff import compare
from rudalle_lib.pipeline.recorded_run import recorded_config, recorded_weights
from rudalle_lib.pipeline.selected import decide
from rudalle_lib.prompts.plan import read_plan
from rudalle_lib.schema.records import RunManifest
from rudalle_lib.storage.storage import Storage

RUN_KINDS = (
    "plan rejects",
    "lease",
    "range lease",
    "lineage",
    "precision",
    "curation",
    "thumbnail",
    *layout.REPORT_KINDS,
)
"""Kinds of files that belong to the run as a whole and not to a shard (`layout.Name.kind`)."""

MAX_FOREIGN = 10
"""Foreign files that are named."""


def audit_output(
    storage: Storage, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Audit:
    """Check all files of an output; runs no network.

    Args:
        storage: The output.
        on_progress: Called after each shard with the number of checked shards and of all shards.

    Raises:
        StorageError: The output cannot be read, or holds no run.
    """
    paths = set(storage.list())
    planned = sorted(path for path in paths if layout.index_of(path, "plan") is not None)
    if not planned and layout.RUN_MANIFEST not in paths:
        raise no_run_error(storage)
    audit, seen = Audit(), Seen(terms=finished_shards(storage))
    _read_run(storage, audit)
    for done, path in enumerate(planned, start=1):
        check_shard(storage, path, audit, seen)
        on_progress(done, len(planned))
    _check_orphans(paths, audit, seen)
    _check_run(storage, len(planned), audit)
    _check_report(storage, audit)
    _check_selection(storage, audit)
    _check_plan_rejects(storage, paths, audit)
    _note_outdated_columns(audit, seen)
    return audit


def reopen_faulty(storage: Storage, audit: Audit, lease_seconds: float) -> list[int]:
    """Make the next run redo all shards that have faults.

    Their manifests are deleted, so the shards no longer count as finished. Intact artifacts in
    `stages/` are reused.

    Args:
        storage: The output.
        audit: Result of `audit_output`.
        lease_seconds: Duration of the lease that is held meanwhile.

    Returns:
        The reopened shards.

    Raises:
        LeaseError: A run is writing to the output.
        StorageError: A manifest cannot be deleted.
    """
    shards = sorted({fault.shard for fault in audit.faults if fault.shard is not None})
    with hold(storage, lease_seconds):
        terms = finished_shards(storage)
        for index in shards:
            delete_shard_manifests(storage, index, terms.get(index, 0))
        if any(_is_of_report(fault.path) for fault in audit.faults):
            storage.delete(layout.RUN_MANIFEST)
    return shards


def _is_of_report(path: str) -> bool:
    name = layout.parse(path)
    return name is not None and name.kind in layout.REPORT_KINDS


def _check_orphans(paths: set[str], audit: Audit, seen: Seen) -> None:
    """Find files that nothing refers to, except those of unfinished shards.

    A file whose name has none of our forms, or no version, may belong to somebody else; it is only
    noted.
    """
    finished = {manifest.index for manifest in audit.manifests}
    named = audit.run.files if audit.run is not None else None
    foreign: list[str] = []
    for path in sorted(paths - seen.files):
        name = layout.parse(path)
        if name is None or (name.kind in SHARD_KINDS and not name.version):
            foreign.append(path)
        elif name.kind == "manifest" and name.number in finished:
            audit.add("orphan", path, "a manifest of a later holder of the lease replaces it", None)
        elif name.kind == "merged" and named is not None and path not in named:
            audit.add("orphan", path, f"{layout.RUN_MANIFEST} does not name it", None)
        elif name.kind not in RUN_KINDS and name.number not in seen.open_shards:
            shard = name.number if name.number in finished else None
            audit.add("orphan", path, "no manifest or metadata refers to it", shard)
    if foreign:
        more = f" and {len(foreign) - MAX_FOREIGN:,} more" if len(foreign) > MAX_FOREIGN else ""
        audit.notes.append(
            f"foreign, ignored by every command: {', '.join(foreign[:MAX_FOREIGN])}{more}"
        )


def _read_run(storage: Storage, audit: Audit) -> None:
    try:
        audit.run = read_run_manifest(storage)
    except ShardError as error:
        audit.add("damaged", layout.RUN_MANIFEST, str(error))
        return
    if audit.run is None:
        audit.add("unfinished", layout.RUN_MANIFEST, "no run has finished in this output")
        return
    _check_lineage(storage, audit, audit.run)
    try:
        audit.config = recorded_config(storage, audit.run)
        recorded_weights(audit.run, audit.config)
    except RudalleError as error:
        audit.config = None
        audit.notes.append(str(error))


def _check_lineage(storage: Storage, audit: Audit, run: RunManifest) -> None:
    try:
        lineage = read_lineage(storage)
    except DamagedError as error:
        audit.add("damaged", layout.LINEAGE, str(error))
        return
    if lineage != run.lineage:
        audit.add("label", layout.LINEAGE, f"{layout.RUN_MANIFEST} records another source")


def _check_run(storage: Storage, planned: int, audit: Audit) -> None:
    if audit.run is None:
        return
    if audit.run.term < max((one.term for one in audit.manifests), default=0):
        detail = "a later holder of the lease has not written its report; run again"
        audit.add("unfinished", layout.RUN_MANIFEST, detail)
    if audit.run.shards_planned != planned:
        detail = f"it records {audit.run.shards_planned:,} planned shards, found {planned:,}"
        audit.add("count", layout.RUN_MANIFEST, detail)
    with suppress(StorageError):  # `_check_plan_rejects` reports this fault
        sums = totals(audit.manifests, count_plan_rejects(storage))
        if len(audit.manifests) == planned and audit.run.totals != sums:
            detail = "its totals differ from the sums over all shards"
            audit.add("count", layout.RUN_MANIFEST, detail)


def _check_report(storage: Storage, audit: Audit) -> None:
    """Dataset card, contact sheet and gallery are those that `run.json` describes."""
    for file in audit.run.files.values() if audit.run is not None else ():
        audit.checked["report files"] += 1
        read_content(storage, file, None, audit)


def _check_selection(storage: Storage, audit: Audit) -> None:
    """Decisions by hand and rules have decided what is published; they run no network."""
    if audit.run is None or audit.config is None:
        return
    if audit.run.selection.curation != curation_digest(storage):
        audit.notes.append(
            f"{layout.CURATION} is not the one that the last run followed; run again to apply it"
        )
        return
    if not audit.run.selection.digest or not audit.manifests:
        return
    weights, shards = recorded_weights(audit.run, audit.config), read_plan(storage)
    try:
        choices, _ = decide(audit.config, weights, storage, shards, audit.manifests)
    except RudalleError as error:  # a table of minimum scores may be somewhere else now
        audit.notes.append(f"selection was not checked: {error}")
        return
    difference = compare(audit.config, weights, shards, audit.manifests, choices)
    changed = [shard.index for shard, stages in difference.changed if stages == ("publish",)]
    if changed:
        names = ", ".join(f"{index:05d}" for index in changed[:MAX_FOREIGN])
        audit.notes.append(
            f"{counted(len(changed), 'shard')} ({names}) would keep other images now; run again"
        )


def _check_plan_rejects(storage: Storage, paths: set[str], audit: Audit) -> None:
    for path in sorted(paths):
        name = layout.parse(path)
        if name is not None and name.kind == "plan rejects":
            audit.checked["tables"] += 1
            read_sealed(storage, path, audit, None)


def _note_outdated_columns(audit: Audit, seen: Seen) -> None:
    if seen.outdated:
        names = ", ".join(f"{old} (now {new})" for old, new in sorted(seen.outdated.items()))
        audit.notes.append(
            f"former column names in {counted(len(seen.outdated_shards), 'shard')}: {names}; they "
            "are read like the current ones, nothing has to be redone"
        )
