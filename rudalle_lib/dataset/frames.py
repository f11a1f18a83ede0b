"""A finished dataset as pandas tables: the published images, and the rejects with their reasons.

Only finished shards, those that have a manifest, are read. So a table never has half a shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from rudalle_lib.dataset.manifests import read_shard_manifests
from rudalle_lib.dataset.rejects import plan_reject_files
from rudalle_lib.errors import StorageError
from rudalle_lib.schema.arrow import schema, with_current_names
from rudalle_lib.schema.records import ImageRecord, RejectRecord
from rudalle_lib.schema.tables import join_tables
from rudalle_lib.storage.storage import Storage


def read_images(url: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The metadata of all published images, indexed by `image_id`, in the order of the plan.

    The columns are those of `ImageRecord`, then pass-through columns. Columns that only some shards
    have, such as those of a prompt table that was extended, hold missing values for the others.
    Columns that an earlier version wrote under another name have their current name.

    Args:
        url: Output of a run, a folder or an fsspec URL. Values of `path` are relative to it.
        columns: Columns to return; all by default.

    Returns:
        One row per image.

    Raises:
        StorageError: There is no finished shard at the URL, or it cannot be read.
    """
    storage = Storage(url)
    manifests = read_shard_manifests(storage)
    if not manifests:
        raise StorageError(
            f"expected the output of a run at {storage.public_path()}, found no finished shard; "
            "check the URL, or see `rudalle-flows status`"
        )
    tables = (storage.read_table(manifest.metadata.path) for manifest in manifests)
    current = (with_current_names(table, ImageRecord) for table in tables)
    if columns is not None:
        wanted = list(dict.fromkeys(("image_id", *columns)))
        current = (_select(table, wanted) for table in current)
    return _frame(current, schema(ImageRecord)).set_index("image_id")


def read_rejects(url: str) -> pd.DataFrame:
    """All prompts and images that were not published, with reason, detail, score and own columns.

    Args:
        url: Output of a run, a folder or an fsspec URL.

    Returns:
        One row per rejected prompt or image; the columns are those of `RejectRecord`, then
        pass-through columns. What a shard of an earlier version does not say is missing.

    Raises:
        StorageError: The URL cannot be read.
    """
    return _frame(_reject_tables(Storage(url)), schema(RejectRecord))


def _reject_tables(storage: Storage) -> Iterator[pa.Table]:
    yield schema(RejectRecord).empty_table()
    for path in plan_reject_files(storage):
        yield storage.read_table(path)
    for manifest in read_shard_manifests(storage):
        if manifest.rejects is not None:
            yield storage.read_table(manifest.rejects.path)


def _select(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    return table.select([name for name in columns if name in table.column_names])


def _frame(tables: Iterable[pa.Table], columns: pa.Schema) -> pd.DataFrame:
    """The rows of all tables in one frame; an empty one with this schema if there are no tables."""
    joined = join_tables(list(tables) or [columns.empty_table()])
    return pd.DataFrame({
        name: _series(column)
        for name, column in zip(joined.column_names, joined.columns, strict=True)
    })  # fmt: skip


def _series(column: pa.ChunkedArray) -> pd.Series[Any]:
    try:
        series: pd.Series[Any] = column.to_pandas()
    except (pa.ArrowException, ValueError):  # pandas has no such values
        series = pd.Series(column.to_pylist(), dtype=object)
    return series
