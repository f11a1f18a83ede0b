"""Random access to encoded data: the rows that are learnt from, and those that are held out.

The shards are copied once into one Arrow file on this machine, which is memory-mapped. So memory
holds only the rows of a batch and what the operating system keeps of the file. The order of the
rows is that of the manifest, whatever encoded them.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from rudalle_lib.dataset.splits import place_of
from rudalle_lib.digests import digest_of
from rudalle_lib.errors import StorageError
from rudalle_lib.storage.errors import translate_errors
from rudalle_lib.storage.storage import Storage
from rudalle_lib.storage.urls import is_local_url
from rudalle_lib.training.data.duplicates import Duplicates
from rudalle_lib.training.data.manifest import EncodedData

CHANNELS = 3
"""Channels of an image."""

CACHE_FOLDER = "cache"
"""Folder of the copies, in an output on this machine."""


class Examples:
    """Rows by their index, from 0; safe to use from several threads.

    Attributes:
        repeats: how often each row is seen for every time that one with 1 is, int64 [N].
    """

    def __init__(self, table: _Rows, numbers: Tensor, repeats: Tensor) -> None:
        self._table = table
        self._numbers = numbers
        self.repeats = repeats

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._numbers)

    def rows(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """Some rows, in the order of the indices.

        Args:
            indices: each from 0 to the number of rows, excluded; B of them.

        Returns:
            Decoder: `text`, int64 [B, T], and `image`, int64 [B, H * W] tokens, row by row. Scorer:
            `text`, and `image`, uint8 [B, 3, H, W]. VQ-GAN: `image`, uint8 [B, 3, H, W].
        """
        return self._table.rows(self._own(indices))

    def captions(self, indices: Sequence[int] | Tensor) -> list[str]:
        """The captions of some rows; empty for a VQ-GAN."""
        return [self._table.caption(number) for number in self._own(indices)]

    def _own(self, indices: Sequence[int] | Tensor) -> list[int]:
        chosen: list[int] = self._numbers[torch.as_tensor(indices, dtype=torch.int64)].tolist()
        return chosen


class Split(NamedTuple):
    """The rows that are learnt from, and those that only measure the loss."""

    train: Examples
    held_out: Examples


def open_examples(
    storage: Storage, data: EncodedData, held_out: float, cache: Path | None = None
) -> Split:
    """Open encoded data.

    A hash of the caption decides whether a row is held out, so all images of a caption are on the
    same side, and a dataset that grows moves none.

    Args:
        storage: the output.
        data: its manifest.
        held_out: share of the captions that are held out, from 0 to 1.
        cache: folder for the copy; None is `cache` in an output on this machine, else
            ~/.cache/rudalle-flows. It takes as much disk as the encoded rows: 4 bytes per token, or
            3 per pixel.

    Raises:
        StorageError: a shard is missing or damaged, or the copy cannot be written.
    """
    folder = cache or _cache_of(storage)
    path = folder / f"{data.digest()}.arrow"
    with translate_errors("write", str(path)):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock"):  # of several processes one copies
            if not path.exists():
                _copy(storage, data, path)
    table = _Rows(path, data)
    counts = [[source.repeats, shard.rows] for source in data.sources for shard in source.shards]
    times, rows = torch.tensor(counts, dtype=torch.int64).reshape(-1, 2).T
    repeats = times.repeat_interleave(rows)
    is_held_out = torch.from_numpy(table.places < held_out)

    def side(mask: Tensor) -> Examples:
        numbers = mask.nonzero().flatten()
        return Examples(table, numbers, repeats[numbers])

    return Split(side(~is_held_out), side(is_held_out))


# --- the copy ----------------------------------------------------------------------------------


def _cache_of(storage: Storage) -> Path:
    if is_local_url(storage.url()):
        return Path(storage.url()) / CACHE_FOLDER
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "rudalle-flows" / "examples" / digest_of(storage.public_path())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _copy(storage: Storage, data: EncodedData, path: Path) -> None:
    """Write the rows of all shards into one file, and delete the files of earlier data."""
    for earlier in path.parent.glob("*.arrow*"):
        earlier.unlink()  # who has it mapped keeps it
    schema, shards = _schema(data), data.shards
    duplicates = None
    if any(shard.duplicates for shard in shards):
        duplicates = Duplicates(storage, [shard.path for shard in shards])
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        with pa.ipc.new_file(file, schema) as writer:
            for number, shard in enumerate(shards):
                table = storage.read_table(shard.path)
                if duplicates is not None:
                    table = _without(table, duplicates.in_shard(number))
                if table.num_rows != shard.rows:
                    raise StorageError(
                        f"{storage.public_path(shard.path)} has {table.num_rows:,} rows, expected "
                        f"{shard.rows:,}; delete it and run again."
                    )
                if table.num_rows:
                    writer.write_batch(_batch(table, schema))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _without(table: pa.Table, places: NDArray[np.int64]) -> pa.Table:
    """A table without some of its rows."""
    kept = np.ones(table.num_rows, bool)
    kept[places] = False
    return table.filter(pa.array(kept))


def _schema(data: EncodedData) -> pa.Schema:
    """The columns of the copy; all but captions have one size, so a row is found by its number."""
    text = [("text", pa.list_(pa.int32(), data.text_length))] if data.text_length else []
    return pa.schema([
        ("caption", pa.string()), ("place", pa.float64()), *text, ("image", _image_type(data))
    ])  # fmt: skip


def _image_type(data: EncodedData) -> pa.DataType:
    if data.tokens:
        return pa.list_(pa.int32(), data.tokens)
    return pa.binary(CHANNELS * data.height * data.width)


def _batch(table: pa.Table, schema: pa.Schema) -> pa.RecordBatch:
    captions, keys = table.column("caption").to_pylist(), table.column("key").to_pylist()
    places = [
        place_of(key if caption is None else caption.lower())
        for caption, key in zip(captions, keys, strict=True)
    ]
    columns = {"caption": captions, "place": places}
    arrays = [
        pa.array(columns[field.name], field.type)
        if field.name in columns
        else table.column(field.name).combine_chunks().cast(field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


class _Rows:
    """All rows in the copy, by their number in the manifest."""

    def __init__(self, path: Path, data: EncodedData) -> None:
        with translate_errors("read", str(path)):
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._captions = [batch.column("caption") for batch in batches]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self._text = [_matrix(batch.column("text")) for batch in batches if data.text_length]
        self._images = [_matrix(batch.column("image")) for batch in batches]
        places = [batch.column("place").to_numpy() for batch in batches]
        self.places = np.concatenate([np.empty(0), *places])
        """The place of the caption of each row in [0, 1), by which it is held out or not."""
        self._shape = (-1,) if data.tokens else (-1, CHANNELS, data.height, data.width)

    def rows(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """See `Examples.rows`."""
        found = {}
        if self._text:
            found["text"] = self._take(self._text, numbers).long()
        images = self._take(self._images, numbers)
        tokens = len(self._shape) == 1
        found["image"] = images.long() if tokens else images.reshape(self._shape)
        return found

    def caption(self, number: int) -> str:
        """The caption of a row; empty if it has none."""
        batch, place = self._find(number)
        return self._captions[batch][place].as_py() or ""

    def _take(self, parts: Sequence[np.ndarray], numbers: Sequence[int]) -> Tensor:
        rows = (self._find(number) for number in numbers)
        found = [parts[batch][place] for batch, place in rows]
        return torch.from_numpy(np.stack(found) if found else parts[0][:0].copy())

    def _find(self, number: int) -> tuple[int, int]:
        """The batch of a row, and its place there."""
        batch = int(np.searchsorted(self._starts, number, "right")) - 1
        return batch, number - int(self._starts[batch])


def _matrix(column: pa.Array) -> np.ndarray:
    """A column of values of one size as a view of the file: [rows, size]."""
    if pa.types.is_fixed_size_list(column.type):
        return column.values.to_numpy().reshape(len(column), column.type.list_size)
    values = np.frombuffer(column.buffers()[1], np.uint8)
    return values.reshape(len(column), column.type.byte_width)
