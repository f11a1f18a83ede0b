"""A dataset that rudalle-flows made, in any of its forms: its finished shards.

Captions are what the decoder read, in Russian.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial

from rudalle_lib.config.inputs import SourceConfig
from rudalle_lib.dataset.manifests import finished_shards, read_shard_manifest
from rudalle_lib.dataset.reader import PublishedImages, is_archive
from rudalle_lib.dataset.splits import COLUMN as SPLIT_COLUMN
from rudalle_lib.errors import ShardError, StorageError
from rudalle_lib.schema.arrow import with_current_names
from rudalle_lib.schema.records import ImageRecord, ShardManifest
from rudalle_lib.storage.storage import Storage
from rudalle_lib.training.data.listing import in_split
from rudalle_lib.training.data.rows import (
    CAPTION_COLUMNS,
    FoundRow,
    Row,
    damaged_file,
    find_column,
)
from rudalle_lib.training.data.tables import reader


def own_rows(source: SourceConfig, captions: bool) -> Iterator[Row]:
    """The published images of finished shards, in the order of the plan.

    Args:
        source: the dataset.
        captions: whether captions are needed.

    Raises:
        DataError: there is no such column of captions, or no such split.
        StorageError: it cannot be opened, or does not answer.
    """
    storage = Storage(source.uri)
    archives = _Archives(storage)
    for index, term in finished_shards(storage).items():
        try:
            manifest = read_shard_manifest(storage, index, term)
            if manifest is not None and manifest.kept:
                yield from _shard_rows(storage, manifest, archives, source, captions)
        except (ShardError, StorageError) as error:
            yield damaged_file(f"shard {index}", error)


def _shard_rows(
    storage: Storage,
    manifest: ShardManifest,
    archives: _Archives,
    source: SourceConfig,
    captions: bool,
) -> Iterator[Row]:
    where = storage.public_path(manifest.metadata.path)
    table = with_current_names(storage.read_table(manifest.metadata.path), ImageRecord)
    splits = None
    if manifest.splits:
        splits = set(in_split(sorted(manifest.splits), source.split, storage.public_path()))
    texts: list[object] = [None] * table.num_rows
    if captions:
        names = table.column_names
        column = find_column(names, source.caption, CAPTION_COLUMNS, "caption", where)
        texts = table.column(column).to_pylist()
    wanted = ["image_id", "path", "sha256", *([SPLIT_COLUMN] if splits is not None else [])]
    for caption, row in zip(texts, table.select(wanted).to_pylist(), strict=True):
        if splits is None or row[SPLIT_COLUMN] in splits:
            path = row["path"]
            read = reader(storage.url(path), source.reading())
            if is_archive(path):
                read = partial(archives.read, path, row["image_id"])
            yield FoundRow(row["image_id"], caption, read, row["sha256"])


class _Archives:
    """The images in the archives of a dataset; several threads may read them."""

    def __init__(self, storage: Storage) -> None:
        self._images = PublishedImages(storage)
        self._lock = threading.Lock()

    def read(self, path: str, image_id: str) -> bytes:
        """The content of an image file."""
        with self._lock:
            return self._images.read(path, image_id)
