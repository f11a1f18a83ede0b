"""Published images in files of a target number of rows, however small the shards are.

Shards stay the unit of commit; merged files are copies, made from finished shards in the order of
the plan. Their content, and so their names, depend on the images and their metadata alone: the
columns `shard` and `path`, which would tell the size of shards, name the merged file instead. So
the same images give the same files for any `prompts.shard_size`, and a dataset that grows keeps
every file but the last of a split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from rudalle_lib.dataset import layout
from rudalle_lib.dataset.archives import IMAGES_PER_GROUP, Group, Stream, write_table, write_tar
from rudalle_lib.dataset.reader import PublishedImages
from rudalle_lib.errors import DamagedError
from rudalle_lib.schema.arrow import with_current_names
from rudalle_lib.schema.records import ImageRecord, ShardManifest
from rudalle_lib.schema.tables import conform
from rudalle_lib.storage.storage import Storage

OF_SHARDS = ("shard", "path")
"""Columns that say how the plan divides the dataset; merged files have values of their own."""

ROWS_PER_DIGEST = 1_000
"""Rows whose text is digested at a time."""

VERSION = 1
"""Of the content of merged files; raise it if the same rows give other bytes."""


@dataclass(frozen=True)
class MergedFile:
    """A merged file that may be written.

    Attributes:
        path: Its name, relative to the output; it holds a digest of the content.
        table: Metadata of its images; `shard` and `path` are those of this file.
        sources: The file or archive that holds each image.
        split: Of the images; empty if there are no splits.
    """

    path: str
    table: pa.Table = field(repr=False)
    sources: Sequence[str] = field(repr=False)
    split: str = ""

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.table.num_rows)

    @property
    def image_bytes(self) -> int:
        """Size of the images in bytes, which is nearly that of the file."""
        return int(pc.sum(self.table.column("bytes")).as_py() or 0)

    def write(self, stream: Stream | BinaryIO, storage: Storage, suffix: str) -> None:
        """Read the images and write the file; the same file is always the same bytes.

        Args:
            stream: Where the file is written; it is left open.
            storage: The output that holds the images.
            suffix: Suffix of image files, without a dot.

        Raises:
            DamagedError: An image is not the one that the metadata describe.
            StorageError: An image cannot be read.
        """
        write = write_tar if self.path.endswith(".tar") else write_table
        write(stream, self._groups(storage), suffix)

    def _groups(self, storage: Storage) -> Iterator[Group]:
        reader = PublishedImages(storage)
        ids, digests = (self.table.column(name).to_pylist() for name in ("image_id", "sha256"))
        for start in range(0, self.images, IMAGES_PER_GROUP):
            end = start + IMAGES_PER_GROUP
            contents = reader.read_many(self.sources[start:end], ids[start:end])
            for index, content in enumerate(contents, start):
                if hashlib.sha256(content).hexdigest() != digests[index]:
                    raise DamagedError(
                        f"{storage.public_path(self.sources[index])}: image {ids[index]} is not "
                        "the one that data/metadata describes; see `rudalle-flows verify`."
                    )
            yield self.table.slice(start, IMAGES_PER_GROUP), contents


def merge_shards(
    storage: Storage,
    manifests: Iterable[ShardManifest],
    columns: pa.Schema,
    form: str,
    rows: int,
) -> Iterator[MergedFile]:
    """Divide the images of finished shards into files, split by split, without reading them.

    Reads the metadata of one shard after the other; holds those of one file per split.

    Args:
        storage: The output.
        manifests: Of the finished shards, by index.
        columns: Of all shards (`union_schema`).
        form: webdataset or parquet.
        rows: Images per file; the last of a split may have fewer.

    Raises:
        StorageError: Metadata cannot be read.
    """
    waiting: dict[str, pa.Table] = {}
    numbers: dict[str, int] = {}

    def take(split: str) -> MergedFile:
        table = waiting[split]
        waiting[split] = table.slice(rows)
        number = numbers.get(split, 0)
        numbers[split] = number + 1
        return _merged_file(table.slice(0, rows), form, number, split)

    for manifest in manifests:
        if not manifest.kept:
            continue
        table = with_current_names(storage.read_table(manifest.metadata.path), ImageRecord)
        table = conform(table, columns).replace_schema_metadata()
        for split in sorted(manifest.splits) or [""]:
            own = table.filter(pc.equal(table.column("split"), split)) if split else table
            waiting[split] = pa.concat_tables([waiting[split], own]) if split in waiting else own
            while waiting[split].num_rows >= rows:
                yield take(split)
    for split in sorted(waiting):
        if waiting[split].num_rows:
            yield take(split)


def _merged_file(table: pa.Table, form: str, number: int, split: str) -> MergedFile:
    table = table.combine_chunks()
    sources = table.column("path").to_pylist()
    path = layout.merged_path(form, number, _digest(table.drop_columns(OF_SHARDS), form), split)
    for name, value in (("shard", number), ("path", path)):
        place, kind = table.schema.get_field_index(name), table.schema.field(name)
        table = table.set_column(place, kind, pa.array([value] * table.num_rows, kind.type))
    return MergedFile(path, table, sources, split)


def _digest(table: pa.Table, form: str) -> str:
    """16 hex digits that stand for the rows, their columns and the form of the file."""
    names = [(column.name, str(column.type)) for column in table.schema]
    digest = hashlib.blake2b(repr((VERSION, form, names)).encode(), digest_size=8)
    for batch in table.to_batches(ROWS_PER_DIGEST):
        digest.update(repr(batch.to_pylist()).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()
