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
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import chain, islice

import pyarrow as pa
import pyarrow.compute as pc

from rudalle_lib import layout
from rudalle_lib.archives import PICTURES_A_GROUP, Group, free_name, write_table, write_tar
from rudalle_lib.config_publish import PublishConfig
from rudalle_lib.digests import DigestingStream
from rudalle_lib.records import DataFile, ImageRecord, RejectRecord, from_table, schema, to_table
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
    """What was written: the records with their files, the metadata file, bytes of all images, and
    the file that holds them, if one does.
    """

    records: tuple[ImageRecord, ...]
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
        images: the files are in `section.image_format`; where they stay files, they are read only
            a few ahead of the uploads.
        section: says in which form they are published.
        extras: the pass-through columns after `prompt_id` (`planning.read_extras`).

    Raises:
        StorageError: something cannot be written.
    """
    storage.delete(layout.shard_manifest_path(index))
    archive: DataFile | None = None
    if section.format == "files":
        records = _write_images(storage, index, images, section.image_format)
        table = with_extras(to_table(records, ImageRecord), extras)
    else:
        records, table, archive = _write_archive(storage, index, images, section, extras)
    _delete_others(storage, index, {record.path for record in records})
    path = layout.metadata_path(index)
    metadata = data_file(path, storage.write_table(path, table))
    size = sum(record.bytes for record in records)
    return WrittenShard(tuple(records), metadata, size, archive)


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
    storage: Storage, index: int, images: Images, image_format: str
) -> list[ImageRecord]:
    written: list[ImageRecord] = []
    pending: deque[Future[list[ImageRecord]]] = deque()

    def work(part: Part) -> list[ImageRecord]:
        paths = [layout.image_path(index, record.image_id, image_format) for record, _ in part]
        for path, (_, content) in zip(paths, part, strict=True):
            storage.write_bytes(path, content)
        return _with_files(paths, part)

    with ThreadPoolExecutor(WRITERS) as pool:
        for part in _parts(images, A_WRITER):
            pending.append(pool.submit(work, part))
            while len(pending) > WRITERS:
                written += pending.popleft().result()
        for future in pending:
            written += future.result()
    return written


def _write_archive(
    storage: Storage, index: int, images: Images, section: PublishConfig, extras: pa.Table | None
) -> tuple[list[ImageRecord], pa.Table, DataFile | None]:
    """All images in one file, a group at a time; no file where there are none."""
    path = layout.archive_path(section.format, index)
    records: list[ImageRecord] = []
    tables = [with_extras(to_table(records, ImageRecord), extras)]

    def groups() -> Iterator[Group]:
        for part in _parts(images, PICTURES_A_GROUP):
            described = _with_files([path] * len(part), part)
            records.extend(described)
            tables.append(with_extras(to_table(described, ImageRecord), extras))
            yield tables[-1], [picture for _, picture in part]

    given = groups()
    first = next(given, None)
    if first is None:
        return records, tables[0], None
    write = write_table if section.format == "parquet" else write_tar
    with storage.writing(path) as stream, DigestingStream(stream) as digesting:
        write(digesting, chain([first], given), layout.image_suffix(section.image_format))
    file = DataFile(path, digesting.written, digesting.hexdigest())
    return records, pa.concat_tables(tables), file


def _parts(images: Images, size: int) -> Iterator[Part]:
    given = iter(images)
    while part := list(islice(given, size)):
        yield part


def _with_files(paths: Sequence[str], part: Part) -> list[ImageRecord]:
    """Records with what is known of their files, whose digests take as long as writing them."""
    return [
        replace(record, path=path, bytes=len(content), sha256=sha256(content).hexdigest())
        for path, (record, content) in zip(paths, part, strict=True)
    ]


def _delete_others(storage: Storage, index: int, kept: Set[str]) -> None:
    """Delete what an earlier attempt at the shard published and this one does not."""
    archives = [layout.archive_path(form, index) for form in layout.ARCHIVES]
    for path in (*storage.list(layout.images_folder(index)), *archives):
        if path not in kept:
            storage.delete(path)
