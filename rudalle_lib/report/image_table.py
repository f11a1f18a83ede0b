"""The metadata of all image files in one table, `data/images/metadata.parquet`.

By its name and its column `file_name` Hugging Face `datasets` finds the images with their captions
and scores (https://huggingface.co/docs/datasets/image_dataset#imagefolder). It has the columns and
types of the whole dataset, and its rows are in the order of the plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rudalle_lib.dataset import layout
from rudalle_lib.dataset.ownership import IMAGE_TABLE_MARK
from rudalle_lib.report.report_files import ReportFiles
from rudalle_lib.schema.arrow import free_name, with_current_names
from rudalle_lib.schema.features import loadable
from rudalle_lib.schema.records import ImageRecord, ShardManifest
from rudalle_lib.schema.tables import conform
from rudalle_lib.storage.storage import Storage

FILE_NAME = "file_name"
"""Column with the path of an image, relative to the table."""


def write_image_tables(
    storage: Storage, files: ReportFiles, manifests: Sequence[ShardManifest], columns: pa.Schema
) -> None:
    """Write the table of each split, or the only one, one shard at a time.

    Args:
        storage: the output.
        files: writes the tables.
        manifests: of the finished shards; those with archives are left out.
        columns: of all shards (`union_schema`).

    Raises:
        StorageError: a shard cannot be read, or a table cannot be written.
    """
    writers: dict[str, pq.ParquetWriter] = {}
    with ExitStack() as stack:
        for split, table in _tables(storage, manifests, columns):
            if split not in writers:
                stream = stack.enter_context(files.writing(layout.image_table_path(split)))
                sink = stack.enter_context(pa.PythonFile(stream, "w"))
                writer = pq.ParquetWriter(sink, table.schema, compression="zstd")
                writers[split] = stack.enter_context(writer)
            writers[split].write_table(table)


def with_file_names(table: pa.Table, folder: str) -> pa.Table:
    """Prepend the column `file_name` to metadata, and rename columns that it collides with.

    Args:
        table: metadata of images that are files.
        folder: of the table, relative to the output.
    """
    paths = pc.utf8_slice_codeunits(table.column("path"), len(folder) + 1)
    named = loadable(table.rename_columns(image_table_names(table.column_names)))
    return named.add_column(0, FILE_NAME, paths.cast(pa.string()))


def image_table_names(names: Sequence[str]) -> list[str]:
    """The names that the columns of the metadata have beside `file_name`.

    `datasets` loads a column `image` of images, and takes each name that ends with `file_name` for
    a column of paths.
    """
    taken = ["image", FILE_NAME, *names]
    free = [free_name(name, taken) if name == "image" else name for name in names]
    return [f"{name}_" if name.endswith(("file_name", "file_names")) else name for name in free]


def _tables(
    storage: Storage, manifests: Sequence[ShardManifest], columns: pa.Schema
) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each shard by split, with `file_name`."""
    mark = {IMAGE_TABLE_MARK: b"metadata of the image files in this folder"}
    for manifest in manifests:
        if manifest.archives or not manifest.kept:
            continue
        table = with_current_names(storage.read_table(manifest.metadata.path), ImageRecord)
        rows = conform(table, columns)
        for split in sorted(manifest.splits) or [""]:
            own = rows.filter(pc.equal(rows.column("split"), split)) if split else rows
            if own.num_rows:
                folder = layout.image_table_path(split).rpartition("/")[0]
                yield split, with_file_names(own, folder).replace_schema_metadata(mark)
