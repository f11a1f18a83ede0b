"""Diversity and duplicates of a dataset, measured on the images of a sample of prompts.

The sample has the prompts whose ids have the smallest digests, with all their images. So two
datasets of the same prompts are compared on the same prompts, however they are divided into shards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rudalle_lib.dataset.reader import PublishedImages, is_archive
from rudalle_lib.digests import digest_of
from rudalle_lib.errors import ConfigError
from rudalle_lib.storage.storage import Storage

MAX_IMAGES = 1000
"""No further prompt is added to a sample that has so many images."""

HASHES, EMBEDDINGS = "perceptual hashes", "embeddings"
"""Methods of measuring diversity; the first one needs the images alone."""

AT_ONCE = 64
"""Image files read together."""

Row = Mapping[str, Any]
"""A published image: `image_id`, `prompt_id` and `path` of the metadata, and any `vector`."""

Bits = NDArray[np.bool_]
Vectors = NDArray[np.float64]


@dataclass(frozen=True)
class SampleFigures:
    """What was measured on a sample.

    Attributes:
        images: number of images in it.
        method: `HASHES` or `EMBEDDINGS`.
        diversity: mean distance of two images: share of differing bits of their perceptual hashes,
            0 to 1, or 1 less the cosine of their embeddings, 0 to 2. None with fewer than two.
        within_prompts: likewise of two images of the same prompt.
        duplicates: share of images with the same pixels as an earlier one.
    """

    images: int
    method: str
    diversity: float | None
    within_prompts: float | None
    duplicates: float | None


class PromptSample:
    """Collects the rows of the prompts of a sample, shard by shard."""

    def __init__(self, max_images: int = MAX_IMAGES) -> None:
        self._max_images = max_images
        self._prompts: list[tuple[str, list[Row]]] = []

    def add(self, rows: Iterable[Row]) -> None:
        """Add the published images of a shard."""
        ordered = sorted(rows, key=lambda row: (row["prompt_id"], row["image_id"]))
        for prompt_id, own in groupby(ordered, key=lambda row: row["prompt_id"]):
            self._prompts.append((digest_of(prompt_id), list(own)))
        self._prompts.sort(key=lambda item: item[0])
        images = 0
        for place, (_, own_rows) in enumerate(self._prompts):
            if images >= self._max_images:
                del self._prompts[place:]
                return
            images += len(own_rows)

    @property
    def prompts(self) -> list[list[Row]]:
        """The rows by prompt."""
        return [rows for _, rows in self._prompts]


def measure_sample(
    storage: Storage, prompts: Sequence[Sequence[Row]], embeddings: bool
) -> SampleFigures:
    """Measure diversity and duplicates; reads the images of the sample.

    Args:
        storage: the output.
        prompts: rows of the metadata by prompt.
        embeddings: measure diversity by embeddings, not by perceptual hashes.

    Raises:
        ConfigError: an image has no embedding.
        StorageError: an image cannot be read.
    """
    rows = [row for own in prompts for row in own]
    hashes, contents = {}, {}
    for row, file in _files(storage, rows):
        hashes[row["image_id"]], contents[row["image_id"]] = _look_at(file, not embeddings)
    distance: Callable[[Any], float | None]
    if embeddings:
        points = [np.array([_vector(row) for row in own]) for own in prompts]
        distance = mean_cosine_distance
    else:
        points = [np.array([hashes[row["image_id"]] for row in own]) for own in prompts]
        distance = mean_bit_distance
    inner = [found for own in points if (found := distance(own)) is not None]
    return SampleFigures(
        images=len(rows),
        method=EMBEDDINGS if embeddings else HASHES,
        diversity=distance(np.concatenate(points)) if points else None,
        within_prompts=float(np.mean(inner)) if inner else None,
        duplicates=1 - len(set(contents.values())) / len(rows) if rows else None,
    )


def mean_bit_distance(bits: Bits) -> float | None:
    """The mean share of differing bits over all pairs of rows; None with fewer than two.

    Args:
        bits: bool [N, B].
    """
    count = len(bits)
    if count < 2:
        return None
    ones = bits.sum(axis=0, dtype=np.float64)
    return float(np.mean(2 * ones * (count - ones)) / (count * (count - 1)))


def mean_cosine_distance(vectors: Vectors) -> float | None:
    """The mean of 1 less the cosine over all pairs of rows; None with fewer than two.

    Args:
        vectors: float [N, D], of any length.
    """
    count = len(vectors)
    if count < 2:
        return None
    wide = vectors.astype(np.float64)
    units = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    total = units.sum(axis=0)
    return float(1 - (total @ total - count) / (count * (count - 1)))


def _vector(row: Row) -> Any:
    if row.get("vector") is None:
        raise ConfigError(f"The image {row['image_id']} has no embedding.")
    return row["vector"]


def _look_at(file: bytes, with_hash: bool) -> tuple[Any, str]:
    """The perceptual hash of an image, bool [64], if it is wanted, and a digest of its pixels."""
    from imagehash import phash

    from rudalle_lib.images.codecs import decode_image, to_pil  # imports torch

    pixels = decode_image(file, keep_alpha=True)
    content = hashlib.sha256(f"{tuple(pixels.shape)}".encode() + pixels.numpy().tobytes())
    hashed = phash(to_pil(pixels).convert("RGB")).hash.ravel() if with_hash else None
    return hashed, content.hexdigest()


def _files(storage: Storage, rows: Sequence[Row]) -> Iterator[tuple[Row, bytes]]:
    """The rows with their image files; those of an archive follow each other."""
    single = [row for row in rows if not is_archive(row["path"])]
    for start in range(0, len(single), AT_ONCE):
        part = single[start : start + AT_ONCE]
        yield from zip(part, storage.read_many([row["path"] for row in part]), strict=True)
    images = PublishedImages(storage)
    packed = [row for row in rows if is_archive(row["path"])]
    for row in sorted(packed, key=lambda row: row["path"]):
        yield row, images.read(row["path"], row["image_id"])
