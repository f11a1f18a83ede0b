"""Writes the images of one shard and their metadata.

As `publish.format` says, each image is a file, `data/images/<shard>/<version>/<image_id>.png`, or
all images of the shard are in one archive. The metadata always goes to
`data/metadata/<shard>.<version>.parquet`: the columns of `ImageRecord`, then the pass-through
columns. Files of other versions stay until the caller has written the manifest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from rudalle_lib.config.sections import PublishConfig
from rudalle_lib.dataset import layout
from rudalle_lib.dataset.archives import IMAGES_PER_GROUP, Group, write_table, write_tar
from rudalle_lib.dataset.splits import COLUMN
from rudalle_lib.digests import DigestingStream
from rudalle_lib.schema.arrow import free_name, to_table
from rudalle_lib.schema.records import DataFile, ImageRecord
from rudalle_lib.schema.tables import with_plain_types
from rudalle_lib.storage.storage import Storage

WRITERS = 8
"""Threads that write and digest images."""

IMAGES_PER_TASK = 16
"""Images that a thread writes per task: starting a task takes as long as writing one to a disk."""

Images = Iterable[tuple[ImageRecord, bytes]]
"""Records with their encoded images."""

Batch = list[tuple[ImageRecord, bytes]]


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """What was written.

    Attributes:
        metadata: The metadata file.
        image_bytes: Size of all images in bytes.
        archives: The files that hold the images, one for each split; none if each image is a file.
    """

    metadata: DataFile
    image_bytes: int
    archives: tuple[DataFile, ...] = ()


def write_shard(
    storage: Storage,
    index: int,
    version: str,
    images: Images,
    section: PublishConfig,
    extras: pa.Table | None = None,
    columns: pa.Table | None = None,
) -> WrittenShard:
    """Write the images of a shard and their metadata.

    Args:
        storage: The output.
        index: The shard.
        version: Of the published shard (`layout.version_of`).
        images: Images encoded in `section.image_format`, consumed as they are written. `path`,
            `bytes` and `sha256` of the records are ignored.
        section: Format of the published images.
        extras: `prompt_id`, then the pass-through columns (see `read_extras`), the first of them
            the split if there are splits (see `with_splits`).
        columns: `image_id`, then optional columns of ours (see `pipeline.image_columns`).

    Raises:
        StorageError: Something cannot be written.
    """
    splits, described = _splits(extras) if section.splits else {}, Described(columns, extras)
    if section.format == "files":
        archives: list[DataFile] = []
        form = section.image_format
        table = _write_images(storage, index, version, images, form, described, splits)
    elif splits:
        own = list(images)
        table, archives = _write_splits(storage, index, version, own, section, described, splits)
    else:
        table, archives = _write_archive(storage, index, version, images, section, described)
    path = layout.metadata_path(index, version)
    metadata = DataFile.of(path, storage.write_table(path, table))
    total = pc.sum(table.column("bytes")).as_py() or 0
    return WrittenShard(metadata, total, tuple(archives))


class Described(NamedTuple):
    """Columns that follow those of `ImageRecord`: optional ones of ours, and pass-through columns.

    Attributes:
        columns: `image_id`, then columns of ours.
        extras: `prompt_id`, then pass-through columns.
    """

    columns: pa.Table | None = None
    extras: pa.Table | None = None

    def metadata(self, records: Sequence[ImageRecord], files: Sequence[DataFile]) -> pa.Table:
        """One row per image; `files` describes each image, even if it is part of an archive."""
        table = to_table(
            records,
            ImageRecord,
            path=[file.path for file in files],
            bytes=[file.bytes for file in files],
            sha256=[file.sha256 for file in files],
        )
        return with_extras(_with_columns(table, self.columns), self.extras)


def with_extras(
    table: pa.Table, extras: pa.Table | None, reserved: Collection[str] = ()
) -> pa.Table:
    """Append the pass-through columns of each row's prompt to the metadata, or to rejects.

    A pass-through column whose name is taken is renamed `input_<name>`. Large strings, binaries and
    lists become plain ones.

    Args:
        table: Metadata with a column `prompt_id`.
        extras: `prompt_id`, then the pass-through columns; None if there are none.
        reserved: Names that are taken although the table does not have them.
    """
    if extras is None:
        return table
    prompt_ids, *columns = with_plain_types(extras).columns
    rows = pc.index_in(table.column("prompt_id"), value_set=prompt_ids)
    for name, column in zip(extras.column_names[1:], columns, strict=True):
        free = free_name(name, {*table.column_names, *reserved})
        table = table.append_column(free, column.take(rows))
    return table


def _with_columns(table: pa.Table, columns: pa.Table | None) -> pa.Table:
    """Append columns of each image, with their descriptions."""
    if columns is None:
        return table
    rows = pc.index_in(table.column("image_id"), value_set=columns.column("image_id"))
    for field, column in list(zip(columns.schema, columns.columns, strict=True))[1:]:
        table = table.append_column(field, column.take(rows))
    return table


def _write_images(
    storage: Storage,
    index: int,
    version: str,
    images: Images,
    image_format: str,
    described: Described,
    splits: Mapping[str, str],
) -> pa.Table:
    """Write each image to a file and return the metadata."""
    records: list[ImageRecord] = []
    files: list[DataFile] = []
    pending: deque[Future[list[DataFile]]] = deque()

    def write(batch: Batch) -> list[DataFile]:
        written = []
        for record, content in batch:
            split = splits.get(record.prompt_id, "")
            path = layout.image_path(index, version, record.image_id, image_format, split)
            storage.write_bytes(path, content)
            written.append(DataFile.of(path, content))
        return written

    with ThreadPoolExecutor(WRITERS) as pool:
        for batch in _batches(images, IMAGES_PER_TASK):
            records += [record for record, _ in batch]
            pending.append(pool.submit(write, batch))
            while len(pending) > WRITERS:
                files += pending.popleft().result()
        for future in pending:
            files += future.result()
    return described.metadata(records, files)


def _write_archive(
    storage: Storage,
    index: int,
    version: str,
    images: Images,
    section: PublishConfig,
    described: Described,
    split: str = "",
) -> tuple[pa.Table, list[DataFile]]:
    """Write all images to one file, unless there are none; return the metadata and that file."""
    path = layout.archive_path(section.format, index, version, split)
    tables = [described.metadata([], [])]

    def groups() -> Iterator[Group]:
        for batch in _batches(images, IMAGES_PER_GROUP):
            records, contents = zip(*batch, strict=True)
            files = [DataFile.of(path, content) for content in contents]
            tables.append(described.metadata(records, files))
            yield tables[-1], contents

    rest = groups()
    first = next(rest, None)
    if first is None:
        return tables[0], []
    write = write_table if section.format == "parquet" else write_tar
    with storage.writing(path) as stream, DigestingStream(stream) as digesting:
        write(digesting, chain([first], rest), layout.image_suffix(section.image_format))
    file = DataFile(path, digesting.written, digesting.hexdigest())
    return pa.concat_tables(tables), [file]


def _write_splits(
    storage: Storage,
    index: int,
    version: str,
    images: Batch,
    section: PublishConfig,
    described: Described,
    splits: Mapping[str, str],
) -> tuple[pa.Table, list[DataFile]]:
    """Write the images of each split to one file; return the metadata in their order, and files."""
    tables, archives = [], []
    for split in section.splits or {}:
        own = [image for image in images if splits[image[0].prompt_id] == split]
        table, files = _write_archive(storage, index, version, own, section, described, split)
        tables.append(table)
        archives += files
    joined = pa.concat_tables(tables)
    order = pa.array([record.image_id for record, _ in images], pa.string())
    return joined.take(pc.index_in(order, joined.column("image_id").combine_chunks())), archives


def _splits(extras: pa.Table | None) -> dict[str, str]:
    """The split of each prompt."""
    if extras is None:
        return {}
    names = (extras.column(name).to_pylist() for name in ("prompt_id", COLUMN))
    return dict(zip(*names, strict=True))


def _batches(images: Images, size: int) -> Iterator[Batch]:
    remaining = iter(images)
    while batch := list(islice(remaining, size)):
        yield batch
