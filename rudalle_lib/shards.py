"""Writing the dataset, one shard at a time.

Images go to files of their own, `data/images/<shard>/<image_id>.png`, or together into one, as
`publish.format` says; their metadata always to `data/metadata/<shard>.parquet` (the columns of
`ImageRecord`, then the pass-through columns), what was not published to `rejects/<shard>.parquet`.
The shard's manifest is deleted first, so that a shard which is written anew does not count as
finished meanwhile; whoever publishes writes the new one last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, islice

import pyarrow as pa
import pyarrow.compute as pc

from rudalle_lib import layout
from rudalle_lib.archives import PICTURES_A_GROUP, Group, free_name, write_table, write_tar
from rudalle_lib.config_publish import PublishConfig
from rudalle_lib.digests import DigestingStream
from rudalle_lib.record_tables import from_table, schema, to_table
from rudalle_lib.records import DataFile, ImageRecord, RejectRecord
from rudalle_lib.storage import Storage

#: Threads that write and digest images, and how many images each takes before it comes back:
#: handing one over takes as long as writing it to a disk.
WRITERS = 8
A_WRITER = 16

Images = Iterable[tuple[ImageRecord, bytes]]
"""Records, each with its encoded file."""

Part = list[tuple[ImageRecord, bytes]]


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """What was written: the metadata file, the bytes of all images, and the file that holds them,
    if one does.
    """

    metadata: DataFile
    image_bytes: int
    archive: DataFile | None = None


def write_shard(
    storage: Storage,
    index: int,
    images: Images,
    section: PublishConfig,
    extras: pa.Table | None = None,
) -> WrittenShard:
    """Write the images of a shard and their metadata, and delete images of an earlier attempt.

    Args:
        storage: the output.
        index: of the shard.
        images: the files are in `section.image_format`; they are read only a few ahead of what is
            written.
        section: says in which form they are published.
        extras: the pass-through columns after `prompt_id` (`planning.read_extras`).

    Raises:
        StorageError: something cannot be written.
    """
    storage.delete(layout.shard_manifest_path(index))
    if section.format == "files":
        archive = None
        table = _write_images(storage, index, images, section.image_format, extras)
    else:
        table, archive = _write_archive(storage, index, images, section, extras)
    _delete_others(storage, index, set(table.column("path").to_pylist()))
    path = layout.metadata_path(index)
    metadata = data_file(path, storage.write_table(path, table))
    return WrittenShard(metadata, pc.sum(table.column("bytes")).as_py() or 0, archive)


def write_rejects(storage: Storage, index: int, rejects: Iterable[RejectRecord]) -> DataFile:
    """Write what was not published of a shard, in place of what was written before."""
    path = layout.rejects_path(index)
    return data_file(path, storage.write_table(path, to_table(rejects, RejectRecord)))


def read_records(storage: Storage, index: int) -> list[ImageRecord]:
    """The published images of a shard, in order."""
    table = storage.read_table(layout.metadata_path(index), schema(ImageRecord).names)
    return from_table(table, ImageRecord)


def data_file(path: str, content: bytes) -> DataFile:
    """The description of a file's content."""
    return DataFile(path, len(content), sha256(content).hexdigest())


def with_extras(table: pa.Table, extras: pa.Table | None) -> pa.Table:
    """The table with the pass-through columns of each row's prompt.

    A pass-through column whose name is taken is called `input_<name>`.
    """
    if extras is None:
        return table
    prompt_ids, *columns = extras.columns
    rows = pc.index_in(table.column("prompt_id"), value_set=prompt_ids)
    for name, column in zip(extras.column_names[1:], columns, strict=True):
        table = table.append_column(free_name(name, table.column_names), column.take(rows))
    return table


def _write_images(
    storage: Storage, index: int, images: Images, image_format: str, extras: pa.Table | None
) -> pa.Table:
    """Each image in a file of its own; the metadata."""
    records: list[ImageRecord] = []
    files: list[DataFile] = []
    pending: deque[Future[list[DataFile]]] = deque()

    def write(part: Part) -> list[DataFile]:
        written = []
        for record, content in part:
            path = layout.image_path(index, record.image_id, image_format)
            storage.write_bytes(path, content)
            written.append(data_file(path, content))
        return written

    with ThreadPoolExecutor(WRITERS) as pool:
        for part in _parts(images, A_WRITER):
            records += [record for record, _ in part]
            pending.append(pool.submit(write, part))
            while len(pending) > WRITERS:
                files += pending.popleft().result()
        for future in pending:
            files += future.result()
    return _metadata(records, files, extras)


def _write_archive(
    storage: Storage, index: int, images: Images, section: PublishConfig, extras: pa.Table | None
) -> tuple[pa.Table, DataFile | None]:
    """All images in one file, a group at a time, none where there are no images; the metadata."""
    path = layout.archive_path(section.format, index)
    tables = [_metadata([], [], extras)]

    def groups() -> Iterator[Group]:
        for part in _parts(images, PICTURES_A_GROUP):
            records, pictures = zip(*part, strict=True)
            tables.append(_metadata(records, [data_file(path, file) for file in pictures], extras))
            yield tables[-1], pictures

    given = groups()
    first = next(given, None)
    if first is None:
        return tables[0], None
    write = write_table if section.format == "parquet" else write_tar
    with storage.writing(path) as stream, DigestingStream(stream) as digesting:
        write(digesting, chain([first], given), layout.image_suffix(section.image_format))
    file = DataFile(path, digesting.written, digesting.hexdigest())
    return pa.concat_tables(tables), file


def _parts(images: Images, size: int) -> Iterator[Part]:
    given = iter(images)
    while part := list(islice(given, size)):
        yield part


def _metadata(
    records: Sequence[ImageRecord], files: Sequence[DataFile], extras: pa.Table | None
) -> pa.Table:
    """A row an image, with what is known of the file that it is, or of its part of one."""
    table = to_table(
        records,
        ImageRecord,
        path=[file.path for file in files],
        bytes=[file.bytes for file in files],
        sha256=[file.sha256 for file in files],
    )
    return with_extras(table, extras)


def _delete_others(storage: Storage, index: int, kept: Set[str]) -> None:
    """Delete what an earlier attempt at the shard published and this one does not."""
    archives = [layout.archive_path(form, index) for form in layout.ARCHIVES]
    for path in (*storage.list(layout.images_folder(index)), *archives):
        if path not in kept:
            storage.delete(path)
