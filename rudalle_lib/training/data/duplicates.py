"""Rows that an earlier row repeats: the same caption and, byte by byte, the same image file.

They are encoded with their shard, whose file thus depends on its own rows alone, and left out
afterwards, when all shards are known. The files hold a digest of each row for that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rudalle_lib.schema.tables import with_metadata
from rudalle_lib.storage.storage import Storage
from rudalle_lib.training.data.rejects import RejectedRow

ROWS = "row_digests"
"""Metadata key of an encoded shard: the key and the digest of each of its rows, as JSON."""


def row_digest(caption: str | None, image: bytes) -> str:
    """A digest of a caption and of the content of an image file, as 32 hex digits."""
    digest = hashlib.blake2b(json.dumps(caption).encode() + b"\n", digest_size=16)
    digest.update(image)
    return digest.hexdigest()


def with_digests(table: pa.Table, digests: Sequence[str]) -> pa.Table:
    """An encoded shard, with a column `key`, that holds the digests of its rows."""
    rows = list(zip(table.column("key").to_pylist(), digests, strict=True))
    return with_metadata(table, {ROWS: json.dumps(rows)})


class Duplicates:
    """The rows of encoded shards that repeat an earlier row of any of them."""

    def __init__(self, storage: Storage, paths: Sequence[str]) -> None:
        """Find them; reads only the ends of the files.

        Args:
            storage: the output.
            paths: files of the shards, in order.

        Raises:
            StorageError: a file cannot be read.
        """
        self._storage, self._paths = storage, paths
        parts = [_numbers([digest for _, digest in self._rows(path)]) for path in paths]
        self._starts = np.cumsum([0, *map(len, parts)])
        self._firsts = first_rows(np.concatenate([_numbers([]), *parts]))

    def in_shard(self, shard: int) -> NDArray[np.int64]:
        """The rows of a shard that are duplicates: their places in its file, in order."""
        start, stop = self._starts[shard : shard + 2]
        return np.flatnonzero(self._firsts[start:stop] != np.arange(start, stop))

    def rejects(self, shard: int, sources: Sequence[str]) -> list[RejectedRow]:
        """The rejects for the duplicates of a shard.

        Args:
            shard: its number.
            sources: the public URL of the dataset of each shard.
        """
        places = self.in_shard(shard)
        if not len(places):
            return []
        rows, others = self._rows(self._paths[shard]), self._keys_of_firsts(shard, places)
        found = []
        for place, (other, key) in zip(places.tolist(), others, strict=True):
            where = "" if sources[other] == sources[shard] else f" of {sources[other]}"
            detail = f"the same image and caption as {key}{where}; `repeats` sets the weight"
            found.append(RejectedRow(sources[shard], rows[place][0], "duplicate", detail))
        return found

    def _keys_of_firsts(self, shard: int, places: NDArray[np.int64]) -> list[tuple[int, str]]:
        """The shard and the key of the row that each of some rows repeats."""
        firsts = self._firsts[self._starts[shard] + places]
        shards = np.searchsorted(self._starts, firsts, "right") - 1
        rows = {other: self._rows(self._paths[other]) for other in np.unique(shards).tolist()}
        return [
            (other, rows[other][first - int(self._starts[other])][0])
            for other, first in zip(shards.tolist(), firsts.tolist(), strict=True)
        ]

    def _rows(self, path: str) -> list[tuple[str, str]]:
        metadata = self._storage.read_metadata(path) or {}
        return [(key, digest) for key, digest in json.loads(metadata.get(ROWS, "[]"))]


def first_rows(digests: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The number of the first row with the digest of each row.

    Args:
        digests: both halves of each, uint64 [N, 2].

    Returns:
        int64 [N].
    """
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # equal ones stay in their order
    ordered = digests[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(1)
    found = np.empty(len(order), np.int64)
    found[order] = order[np.flatnonzero(is_first)[np.cumsum(is_first) - 1]]
    return found


def _numbers(digests: Sequence[str]) -> NDArray[np.uint64]:
    """Digests as their halves, uint64 [N, 2]."""
    return np.frombuffer(bytes.fromhex("".join(digests)), ">u8").astype(np.uint64).reshape(-1, 2)
