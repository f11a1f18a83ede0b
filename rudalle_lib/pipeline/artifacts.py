"""Stage artifacts: the output of a stage for one shard, a Parquet file with its fingerprint.

If the fingerprint is the expected one and the file is whole, the stage is done and is skipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict

import pyarrow as pa

from rudalle_lib.dataset import layout
from rudalle_lib.errors import DamagedError
from rudalle_lib.schema.records import NO_DEVICE, DeviceUse, Reject, ShardSpec, StageArtifact
from rudalle_lib.schema.tables import with_metadata
from rudalle_lib.storage.storage import Storage

REJECTS = "refused"
"""Metadata key of an artifact: the prompts that its stage rejected. The key is older than the word
that the code uses; datasets hold it."""

USE = "use"
"""Metadata key of an artifact: which devices its stage used, and for how long."""

REOPENED = "reopened"
"""Metadata key of an artifact that is not finished: prompts that its stage is asked to process
again; none if only rows are missing."""

ROW = "row"
"""Metadata key of an artifact: the fingerprint of its rows, however many there are
(`stages.row_fingerprints`). Artifacts of earlier versions have none."""


def find_artifact(
    storage: Storage,
    stage: str,
    shard: ShardSpec,
    expected: str,
    notice: Callable[[str], None] = lambda _: None,
    term: int = 0,
) -> StageArtifact | None:
    """The artifact of a stage for a shard, if it is whole and has the expected fingerprint.

    One that is not finished (`REOPENED`) counts as missing here. One of an earlier term of the
    lease is copied, because its writer may still be alive and replace it.

    Args:
        storage: the output.
        stage: name of the stage.
        shard: the planned shard.
        expected: the fingerprint.
        notice: called with one sentence if the artifact is damaged; it then counts as missing.
        term: of the lease that is held.
    """
    own = stage_path(stage, shard, expected, term)
    for path in (own, *earlier_paths(stage, shard, expected, term)):
        metadata = storage.read_metadata(path)
        try:
            if not storage.check_table(path) or metadata is None:
                continue
        except DamagedError as error:
            notice(f"{error} It is made again.")
            continue
        if metadata.get("fingerprint") != expected:
            continue
        if REOPENED in metadata:
            return None
        if path != own and term:
            storage.write_bytes(own, storage.read_bytes(path))
            path = own
        return artifact_of(storage, path, metadata)
    return None


def artifact_of(storage: Storage, path: str, metadata: Mapping[str, str]) -> StageArtifact:
    """The artifact in a file with this metadata."""
    rows, seconds = int(metadata["rows"]), float(metadata["seconds"])
    use = json.loads(metadata.get(USE, "{}"))
    return StageArtifact(storage.url(path), metadata["fingerprint"], rows, seconds, **use)


def stage_path(stage: str, shard: ShardSpec, fingerprint: str, term: int = 0) -> str:
    """Where a stage writes its artifact for a shard."""
    return layout.stage_path(stage, shard.index, layout.version_of(fingerprint, term))


def earlier_paths(stage: str, shard: ShardSpec, fingerprint: str, term: int) -> list[str]:
    """Where else it may be: under earlier terms, the last first, or as 0.1 named it."""
    earlier = [stage_path(stage, shard, fingerprint, number) for number in range(term - 1, -1, -1)]
    return [*earlier, layout.stage_path(stage, shard.index)]


def write_artifact(
    storage: Storage,
    stage: str,
    shard: ShardSpec,
    fingerprint: str,
    table: pa.Table,
    seconds: float,
    use: DeviceUse = NO_DEVICE,
    term: int = 0,
    row: str | None = None,
    finished: bool = True,
) -> StageArtifact:
    """Write the output of a stage for a shard.

    Args:
        storage: the output.
        stage: name of the stage.
        shard: the planned shard.
        fingerprint: of this output.
        table: its rows.
        seconds: how long the stage took.
        use: the devices that it held.
        term: of the lease that is held.
        row: the fingerprint of its rows, of a stage with a row per image.
        finished: whether it has all rows. Otherwise a later call adds what is missing.
    """
    path, seconds = stage_path(stage, shard, fingerprint, term), round(seconds, 3)
    metadata = {"fingerprint": fingerprint, "rows": str(table.num_rows), "seconds": str(seconds)}
    if row is not None:
        metadata[ROW] = row
    if not finished:
        metadata[REOPENED] = "[]"
    held = asdict(use)
    storage.write_table(path, table, {**metadata, USE: json.dumps(held)})
    return StageArtifact(storage.url(path), fingerprint, table.num_rows, seconds, **held)


def read_artifact(storage: Storage, artifact: StageArtifact) -> pa.Table:
    """The table of an artifact.

    Raises:
        StorageError: it is missing or damaged.
    """
    return storage.read_table(storage.relative(artifact.uri))


def with_rejects(table: pa.Table, rejects: Mapping[str, Reject]) -> pa.Table:
    """The table of a stage with the prompts that it rejected, by prompt id."""
    return with_metadata(table, {REJECTS: json.dumps(rejects)})


def rejects_in(table: pa.Table) -> dict[str, Reject]:
    """The prompts that a stage rejected, by prompt id."""
    stored = (table.schema.metadata or {}).get(REJECTS.encode(), b"{}")
    return {prompt_id: Reject(*reject) for prompt_id, reject in json.loads(stored).items()}
