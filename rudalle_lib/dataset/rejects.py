"""Tables of rejected prompts and images: one per shard, and one per prompt table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa

from rudalle_lib.dataset import layout
from rudalle_lib.dataset.writer import with_extras
from rudalle_lib.schema.arrow import schema, to_table
from rudalle_lib.schema.records import DataFile, ImageRecord, RejectRecord
from rudalle_lib.storage.storage import Storage


def write_rejects(
    storage: Storage,
    index: int,
    version: str,
    rejects: Iterable[RejectRecord],
    extras: pa.Table | None = None,
) -> DataFile:
    """Write the rejects of a shard.

    Args:
        storage: The output.
        index: The shard.
        version: Of the published shard.
        rejects: Prompts and images.
        extras: `prompt_id`, then the pass-through columns. They have the names that they have in
            the metadata.
    """
    path, names = layout.rejects_path(index, version), schema(ImageRecord).names
    table = with_extras(to_table(rejects, RejectRecord), extras, names)
    return DataFile.of(path, storage.write_table(path, table))


def count_plan_rejects(storage: Storage) -> Counter[str]:
    """The number of rows of prompt tables that the plan rejected, by reason."""
    counts: Counter[str] = Counter()
    for path in plan_reject_files(storage):
        counts.update(storage.read_table(path, ["reason"]).column("reason").to_pylist())
    return counts


def plan_reject_files(storage: Storage) -> list[str]:
    """The files of rows that the plan rejected, one per prompt table."""
    names = {path: layout.parse(path) for path in storage.list(layout.REJECTS_FOLDER)}
    return [path for path, name in names.items() if name and name.kind == "plan rejects"]
