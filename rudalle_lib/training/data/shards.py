"""The rows of a dataset in shards."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from rudalle_lib.config.inputs import SourceConfig
from rudalle_lib.digests import digest_of
from rudalle_lib.storage.errors import translate_errors
from rudalle_lib.training.data.rows import BadRow, Row
from rudalle_lib.training.data.sources import read_rows


@dataclass(frozen=True)
class Shard:
    """Some consecutive rows of a dataset, and the number of the shard in it."""

    index: int
    rows: Sequence[Row]

    def identity(self) -> str:
        """A digest that changes if any of the rows does."""
        return digest_of([row.identity() for row in self.rows])


def read_shards(source: SourceConfig, captions: bool, size: int) -> Iterator[Shard]:
    """The rows of a dataset in shards, which are to be used one by one.

    Images that come with their rows wait in a temporary file, until the next shard is asked for.

    Args:
        source: the dataset.
        captions: whether rows need captions.
        size: rows per shard.

    Raises:
        DataError: see `read_rows`.
        StorageError: a dataset cannot be read, or the disk for temporary files is full.
    """
    rows = read_rows(source, captions)
    index = 0
    while True:
        with tempfile.TemporaryFile(buffering=0) as file:
            found = [_without_content(row, file) for row in islice(rows, size)]
            if not found:
                return
            yield Shard(index, found)
        index += 1


def _without_content(row: Row, file: io.FileIO) -> Row:
    """The row with a function that reads its image back, if it brings the image along."""
    if isinstance(row, BadRow) or not isinstance(row.image, bytes):
        return row
    start = file.tell()
    with translate_errors("write images to", tempfile.gettempdir()):
        left = memoryview(row.image)
        while left:
            left = left[file.write(left) :]
    read = partial(os.pread, file.fileno(), len(row.image), start)
    return replace(row, image=read, stamp=row.identity())
