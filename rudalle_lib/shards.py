"""Writing the dataset, one shard at a time.

Images go to files of their own, `data/images/<shard>/<image_id>.png`, or together into one, as
`publish.format` says; their metadata always to `data/metadata/<shard>.parquet` (the columns of
`ImageRecord`, then the pass-through columns), what was not published to `rejects/<shard>.parquet`.
The shard's manifest is deleted first, so that a shard which is written anew does not count as
finished meanwhile; whoever publishes writes the new one last.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice

import pyarrow as pa

from rudalle_lib import layout
from rudalle_lib.archives import free_name, pack_table, pack_tar
from rudalle_lib.config_publish import PublishConfig
from rudalle_lib.records import DataFile, ImageRecord, RejectRecord, from_table, schema, to_table
from rudalle_lib.storage import Storage

#: Threads that write and digest images, and how many images each takes before it comes back:
#: handing one over takes as long as writing it to a disk.
WRITERS = 8
A_WRITER = 16

Images = Iterable[tuple[ImageRecord, bytes]]
"""Records, each with its encoded file."""


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
    return DataFile(path, len(content), hashlib.sha256(content).hexdigest())


def with_extras(table: pa.Table, extras: pa.Table | None) -> pa.Table:
    """The table with the pass-through columns of each row's prompt.

    A pass-through column whose name is taken is called `input_<name>`.
    """
    if extras is None:
        return table
    prompt_ids, *columns = extras.columns
    place = {prompt_id: row for row, prompt_id in enumerate(prompt_ids.to_pylist())}
    rows = [place[prompt_id] for prompt_id in table.column("prompt_id").to_pylist()]
    for name, column in zip(extras.column_names[1:], columns, strict=True):
        values = column.take(pa.array(rows, pa.int64()))
        table = table.append_column(free_name(name, table.column_names), values)
    return table


def _write_images(
    storage: Storage, index: int, images: Images, image_format: str
) -> list[ImageRecord]:
    written: list[ImageRecord] = []
    pending: deque[Future[list[ImageRecord]]] = deque()
    given = iter(images)

    def work(part: Sequence[tuple[ImageRecord, bytes]]) -> list[ImageRecord]:
        paths = [layout.image_path(index, record.image_id, image_format) for record, _ in part]
        for path, (_, content) in zip(paths, part, strict=True):
            storage.write_bytes(path, content)
        return _with_files(paths, part)

    with ThreadPoolExecutor(WRITERS) as pool:
        while part := list(islice(given, A_WRITER)):
            pending.append(pool.submit(work, part))
            while len(pending) > WRITERS:
                written += pending.popleft().result()
        for future in pending:
            written += future.result()
    return written


def _write_archive(
    storage: Storage, index: int, images: Images, section: PublishConfig, extras: pa.Table | None
) -> tuple[list[ImageRecord], pa.Table, DataFile | None]:
    """All images in one file; none where there are none."""
    path = layout.archive_path(section.format, index)
    given = list(images)
    parts = [given[start : start + A_WRITER] for start in range(0, len(given), A_WRITER)]
    with ThreadPoolExecutor(WRITERS) as pool:
        described = pool.map(partial(_with_files, [path] * A_WRITER), parts)
        records = list(chain.from_iterable(described))
        table = with_extras(to_table(records, ImageRecord), extras)
        if not records:
            return records, table, None
        pack = pack_table if section.format == "parquet" else pack_tar
        suffix = layout.image_suffix(section.image_format)
        content = pack(table, [picture for _, picture in given], suffix)
        written = pool.submit(storage.write_bytes, path, content)
        file = data_file(path, content)
        written.result()
    return records, table, file


def _with_files(
    paths: Sequence[str], part: Sequence[tuple[ImageRecord, bytes]]
) -> list[ImageRecord]:
    """Records with what is known of their files, whose digests take as long as writing them."""
    files = [data_file(path, content) for path, (_, content) in zip(paths, part, strict=False)]
    return [
        replace(record, path=file.path, bytes=file.bytes, sha256=file.sha256)
        for file, (record, _) in zip(files, part, strict=True)
    ]


def _delete_others(storage: Storage, index: int, kept: Set[str]) -> None:
    """Delete what an earlier attempt at the shard published and this one does not."""
    archives = [layout.archive_path(form, index) for form in layout.ARCHIVES]
    for path in (*storage.list(layout.images_folder(index)), *archives):
        if path not in kept:
            storage.delete(path)
