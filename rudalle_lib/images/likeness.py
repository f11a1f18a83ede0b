"""How alike two images are: by ruCLIP's features, and by perceptual hashes.

Distances are computed in float64 from what is stored, and rounded, so that they are the same in
every batch, shard and run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rudalle_lib.config.scoring import ScoreConfig
from rudalle_lib.schema.records import Reject, ScoreRecord

DIGITS = 6
"""Digits of a distance after the point."""

HASH_BITS = 64
"""Bits of a perceptual hash."""


def unpack_embedding(stored: bytes) -> npt.NDArray[np.float16]:
    """The features of a `ScoreRecord`, float16 [E]."""
    return np.frombuffer(stored, np.dtype("<f2"))


def cosine_distances(
    rows: npt.NDArray[np.float16], one: npt.NDArray[np.float16]
) -> npt.NDArray[np.float64]:
    """The cosine distances of some embeddings to one.

    Args:
        rows: float16 [N, E].
        one: float16 [E].

    Returns:
        float64 [N], from 0 (the same direction) to 2, with 6 digits.
    """
    many, single = rows.astype(np.float64), one.astype(np.float64)
    # einsum adds each row up by itself, in the same order however many rows there are.
    dots = np.einsum("ij,j->i", many, single)
    norms = np.sqrt(np.einsum("ij,ij->i", many, many) * np.einsum("j,j->", single, single))
    return np.clip(1.0 - dots / np.where(norms > 0, norms, 1.0), 0.0, 2.0).round(DIGITS)


def embedding_distance(one: bytes, other: bytes) -> float:
    """The cosine distance of two stored embeddings, from 0 (the same direction) to 2."""
    return float(cosine_distances(unpack_embedding(one)[None], unpack_embedding(other))[0])


def pack_vectors(stored: Sequence[bytes | None]) -> pa.FixedSizeListArray:
    """Stored embeddings as a column of fixed-size lists of float16, null where there is none."""
    size = next(len(one) // 2 for one in stored if one)
    joined = b"".join(one or bytes(2 * size) for one in stored)
    values = pa.array(np.frombuffer(joined, np.dtype("<f2")).astype(np.float16))
    mask = pa.array([not one for one in stored])
    return pa.FixedSizeListArray.from_arrays(values, size, mask=mask)


def unpack_vectors(column: pa.ChunkedArray) -> npt.NDArray[np.float16]:
    """A column of fixed-size lists of float16 without nulls, float16 [N, E]."""
    size = column.type.list_size
    values = [part.flatten().to_numpy(zero_copy_only=False) for part in column.chunks]
    joined = np.concatenate(values) if values else np.empty(0, np.float16)
    return joined.reshape(-1, size)


def hash_distance(one: str, other: str) -> int:
    """The bits that differ between two perceptual hashes, from 0 to 64."""
    return (int(one, 16) ^ int(other, 16)).bit_count()


def find_likeness(
    row: ScoreRecord, others: Iterable[ScoreRecord], selection: ScoreConfig
) -> Reject | None:
    """Whether an image is too much like one of others, the first that is.

    Args:
        row: The image.
        others: Kept images of its prompt.
        selection: `min_distance` and `min_hash_distance`.
    """
    least, least_bits = selection.min_distance, selection.min_hash_distance
    for other in others:
        if least is not None and row.embedding is not None and other.embedding is not None:
            distance = embedding_distance(row.embedding, other.embedding)
            if distance < least:
                what = f"distance {distance:.4f} to {other.image_id}"
                return Reject("near_duplicate", f"{what} is below min_distance {least:.4f}")
        if least_bits is not None and row.phash is not None and other.phash is not None:
            bits = hash_distance(row.phash, other.phash)
            if bits < least_bits:
                what = f"{bits} bits of the hash differ from {other.image_id}"
                return Reject("near_duplicate", f"{what}, min_hash_distance is {least_bits}")
    return None
