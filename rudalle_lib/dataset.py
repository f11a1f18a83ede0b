"""A finished dataset as pandas tables: the pictures, and what was rejected and why.

Only finished shards are read - those that have a manifest - so a table is never half a shard.
"""

from collections.abc import Iterable, Iterator, Sequence

import pandas as pd
import pyarrow as pa

from rudalle_lib import layout
from rudalle_lib.errors import StorageError
from rudalle_lib.manifest import read_shard_manifests
from rudalle_lib.record_tables import schema
from rudalle_lib.records import ImageRecord, RejectRecord
from rudalle_lib.storage import Storage


def read_pictures(url: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The metadata of every published picture, indexed by `image_id`, in the order of the plan.

    Columns that only some shards have, such as columns of a prompt table that grew, are missing
    values in the others. `path` is relative to `url`.

    Args:
        url: the output of a run, a folder or an fsspec URL.
        columns: those that are wanted; all by default.

    Raises:
        StorageError: there is no finished shard at the URL, or it cannot be read.
    """
    storage = Storage(url)
    manifests = read_shard_manifests(storage)
    if not manifests:
        raise StorageError(
            f"expected the output of a run at {storage.public_path()}, found no finished shard; "
            "check the URL, or see `rudalle-flows status`"
        )
    wanted = None if columns is None else list(dict.fromkeys(("image_id", *columns)))
    tables = (storage.read_table(manifest.metadata.path, wanted) for manifest in manifests)
    return _frame(tables, schema(ImageRecord)).set_index("image_id")


def read_rejects(url: str) -> pd.DataFrame:
    """Every prompt and picture that was not published, with reason and detail.

    Args:
        url: the output of a run, a folder or an fsspec URL.

    Raises:
        StorageError: the URL cannot be read.
    """
    storage = Storage(url)
    return _frame(_reject_tables(storage), schema(RejectRecord))


def _reject_tables(storage: Storage) -> Iterator[pa.Table]:
    for path in storage.list(layout.REJECTS_FOLDER):
        if path.endswith(".parquet") and layout.index_of(path) is None:
            yield storage.read_table(path)
    for manifest in read_shard_manifests(storage):
        if manifest.rejects is not None:
            yield storage.read_table(manifest.rejects.path)


def _frame(tables: Iterable[pa.Table], columns: pa.Schema) -> pd.DataFrame:
    """One frame of several tables; the given schema's empty one if there are none."""
    joined = list(tables) or [columns.empty_table()]
    frame: pd.DataFrame = pa.concat_tables(joined, promote_options="default").to_pandas()
    return frame
