"""Writing the dataset, one shard at a time, in the layout `files`.

Images go to `data/images/<shard>/<image_id>.png`, their metadata to `data/metadata/<shard>.parquet`
(the columns of `ImageRecord`, then the pass-through columns), what was not published to
`rejects/<shard>.parquet`. The shard's manifest is deleted first, so that a shard which is written
anew does not count as finished meanwhile; whoever publishes writes the new one last.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa

from rudalle_lib import layout
from rudalle_lib.records import DataFile, ImageRecord, RejectRecord, from_table, schema, to_table
from rudalle_lib.storage import Storage

#: Images uploaded at once.
WRITERS = 8


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """What was written: the records with their files, the metadata file, bytes of all images."""

    records: tuple[ImageRecord, ...]
    metadata: DataFile
    image_bytes: int


def write_files(
    storage: Storage,
    index: int,
    images: Iterable[tuple[ImageRecord, bytes]],
    image_format: str,
    extras: pa.Table | None = None,
) -> WrittenShard:
    """Write the images of a shard and their metadata, and delete images of an earlier attempt.

    `images` gives each record with its encoded file (`image_format`: png, webp or jpeg), and is
    read only a few images ahead of the uploads. `extras` are the pass-through columns after
    `prompt_id` (`planning.read_extras`). Raises `StorageError`.
    """
    storage.delete(layout.shard_manifest_path(index))
    records = _write_images(storage, index, images, image_format)
    _delete_others(storage, index, records)
    table = with_extras(to_table(records, ImageRecord), extras)
    path = layout.metadata_path(index)
    metadata = data_file(path, storage.write_table(path, table))
    return WrittenShard(tuple(records), metadata, sum(record.bytes for record in records))


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
        table = table.append_column(_free_name(name, table.column_names), values)
    return table


def _free_name(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name = f"input_{name}"
    return name


def _write_images(
    storage: Storage, index: int, images: Iterable[tuple[ImageRecord, bytes]], image_format: str
) -> list[ImageRecord]:
    written: list[ImageRecord] = []
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(WRITERS) as pool:
        for record, content in images:
            path = layout.image_path(index, record.image_id, image_format)
            file = data_file(path, content)
            written.append(replace(record, path=path, bytes=file.bytes, sha256=file.sha256))
            pending.append(pool.submit(storage.write_bytes, path, content))
            while len(pending) > 2 * WRITERS:
                pending.popleft().result()
        for future in pending:
            future.result()
    return written


def _delete_others(storage: Storage, index: int, records: Iterable[ImageRecord]) -> None:
    """Delete the images that an earlier attempt at the shard kept and this one does not."""
    kept = {record.path for record in records}
    for path in storage.list(layout.images_folder(index)):
        if path not in kept:
            storage.delete(path)
