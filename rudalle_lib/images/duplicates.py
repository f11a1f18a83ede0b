"""Near-duplicates among any number of images: exact, in bounded memory, with `faiss`.

Images are taken in order. One that is within the limits of an earlier image counts as its
duplicate; the others are *firsts*, and only with them are later images compared. So the first of
some alike images stays, whatever is added later, and chains of ever less alike images do not merge.

Embeddings are searched in a projection to few dimensions, which makes no distance larger, so no
neighbour is missed; what it finds is compared in full precision. The results therefore do not
depend on the projection, on blocks, or on threads.

Library: Johnson, Douze and Jégou, "Billion-scale similarity search with GPUs", arXiv 1702.08734.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from rudalle_lib.errors import SettingsError
from rudalle_lib.images.likeness import HASH_BITS, cosine_distances

BLOCK = 2048
"""Images that are compared at a time."""

PROJECTED = 64
"""Dimensions in which neighbours are searched first."""

CROWDED = 200
"""Mean candidates per image above which the projection is given up: it tells too few apart."""

MARGIN = 1e-4
"""Added to squared distances in a search: more than float32 is off."""

Vectors = npt.NDArray[np.float16]
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Batch:
    """Some images: their embeddings, float16 [N, E], their hashes, uint64 [N], or both."""

    embeddings: Vectors | None = None
    hashes: Hashes | None = None

    def __len__(self) -> int:
        return max(0 if part is None else len(part) for part in (self.embeddings, self.hashes))

    def rows(self, chosen: slice | Sequence[int]) -> Batch:
        """Some of the images."""
        embeddings, hashes = self.embeddings, self.hashes
        return Batch(
            None if embeddings is None else embeddings[chosen],
            None if hashes is None else hashes[chosen],
        )


class Limits(NamedTuple):
    """Images nearer than this are near-duplicates; None does not compare.

    Attributes:
        distance: cosine distance of embeddings, from 0 to 2.
        bits: bits in which perceptual hashes differ, from 0 to 64.
    """

    distance: float | None = None
    bits: int | None = None


class Near(NamedTuple):
    """The first image that an image is a duplicate of.

    Attributes:
        first: its position in the order of all images, from 0.
        distance: cosine distance; None without embeddings.
        bits: bits in which hashes differ; None without hashes.
    """

    first: int
    distance: float | None
    bits: int | None


def find_duplicates(batches: Iterable[Batch], limits: Limits) -> Iterator[Near | None]:
    """Find the near-duplicates among images.

    Args:
        batches: the images in order; batches may have any sizes.
        limits: how alike near-duplicates are.

    Yields:
        For each image in order: the nearest earlier first within the limits, the earliest of
        equally near ones; None if the image is a first itself.

    Raises:
        SettingsError: the package faiss is not installed.
    """
    firsts = _Firsts(limits)
    for block in _blocks(batches):
        yield from firsts.place(block)


def _blocks(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same images in blocks of equal size."""
    waiting: list[Batch] = []
    count = 0
    for batch in batches:
        waiting.append(batch)
        count += len(batch)
        while count >= BLOCK:
            joined = _join(waiting)
            yield joined.rows(slice(0, BLOCK))
            waiting, count = [joined.rows(slice(BLOCK, None))], count - BLOCK
    if count:
        yield _join(waiting)


def _join(batches: Sequence[Batch]) -> Batch:
    """Batches as one; all have the same parts."""
    embeddings = [batch.embeddings for batch in batches if batch.embeddings is not None]
    hashes = [batch.hashes for batch in batches if batch.hashes is not None]
    return Batch(
        np.concatenate(embeddings) if embeddings else None,
        np.concatenate(hashes) if hashes else None,
    )


class _Firsts:
    """The firsts so far, with their positions in the order of all images."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._seen = limits, 0
        self._searches: list[_Search] = []
        if limits.distance is not None:
            self._searches.append(_EmbeddingSearch(limits.distance))
        if limits.bits is not None:
            self._searches.append(_HashSearch(limits.bits))
        self._embeddings, self._hashes, self._positions = _Rows(), _Rows(), _Rows()

    def place(self, block: Batch) -> list[Near | None]:
        """Compare the next images with the firsts, and then with each other."""
        start, self._seen = self._seen, self._seen + len(block)
        found: list[Near | None] = [None] * len(block)
        for row, numbers in _candidates(one.search(block) for one in self._searches).items():
            others = Batch(self._embeddings.take(numbers), self._hashes.take(numbers))
            positions = self._positions.take(numbers).tolist()
            found[row] = self._nearest(block.rows([row]), others, positions)
        left = [row for row, near in enumerate(found) if near is None]
        number_of = {row: number for number, row in enumerate(left)}
        rest = block.rows(left)
        pairs = _candidates(one.compare(block, rest) for one in self._searches)
        new: set[int] = set()  # numbers of firsts in `left`
        for row in range(len(block)):
            earlier = [other for other in pairs.get(row, ()) if other in new]
            if earlier:
                positions = [start + left[other] for other in earlier]
                near = self._nearest(block.rows([row]), rest.rows(earlier), positions)
                found[row] = min(filter(None, (found[row], near)), key=_nearness, default=None)
            if found[row] is None:
                new.add(number_of[row])
        firsts = sorted(new)
        self._keep(rest.rows(firsts), [start + left[number] for number in firsts])
        return found

    def _keep(self, firsts: Batch, positions: Sequence[int]) -> None:
        for search in self._searches:
            search.add(firsts)
        self._embeddings.append(firsts.embeddings)
        self._hashes.append(firsts.hashes)
        self._positions.append(np.array(positions, np.int64))

    def _nearest(self, one: Batch, others: Batch, positions: Sequence[int]) -> Near | None:
        """The nearest of some firsts that is within the limits, in full precision."""
        distances: list[float | None] = [None] * len(positions)
        bits: list[int | None] = [None] * len(positions)
        if one.embeddings is not None and others.embeddings is not None:
            distances = cosine_distances(others.embeddings, one.embeddings[0]).tolist()
        if one.hashes is not None and others.hashes is not None:
            bits = np.bitwise_count(others.hashes ^ one.hashes[0]).tolist()
        near = [
            Near(*row)
            for row in zip(positions, distances, bits, strict=True)
            if _within(row[1], self._limits.distance) or _within(row[2], self._limits.bits)
        ]
        return min(near, key=_nearness, default=None)


def _nearness(near: Near) -> tuple[float, int, int]:
    return near.distance or 0.0, near.bits or 0, near.first


def _within(found: float | None, limit: float | None) -> bool:
    return found is not None and limit is not None and found < limit


class _Rows:
    """An array that grows at its end; empty until the first rows come."""

    def __init__(self) -> None:
        self._rows: npt.NDArray[Any] | None = None
        self.count = 0

    def append(self, rows: npt.NDArray[Any] | None) -> None:
        if rows is None or not len(rows):
            return
        end = self.count + len(rows)
        if self._rows is None:
            self._rows = np.empty((max(BLOCK, end), *rows.shape[1:]), rows.dtype)
        elif end > len(self._rows):
            larger = np.empty((max(end, 3 * len(self._rows) // 2), *rows.shape[1:]), rows.dtype)
            larger[: self.count] = self._rows[: self.count]
            self._rows = larger
        self._rows[self.count : end] = rows
        self.count = end

    def take(self, numbers: Sequence[int]) -> Any:
        return None if self._rows is None else self._rows[list(numbers)]

    def chunks(self) -> Iterator[npt.NDArray[Any]]:
        for start in range(0, self.count, BLOCK):
            assert self._rows is not None
            yield self._rows[start : min(start + BLOCK, self.count)]


Found = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Candidates of each row: where those of row i begin and end, [N + 1], and their numbers."""


def _candidates(results: Iterable[Found]) -> dict[int, list[int]]:
    """The candidates of each row that has any, from all searches, in order."""
    found: dict[int, set[int]] = {}
    for bounds, numbers in results:
        for row in np.flatnonzero(np.diff(bounds)).tolist():
            found.setdefault(row, set()).update(numbers[bounds[row] : bounds[row + 1]].tolist())
    return {row: sorted(found[row]) for row in sorted(found)}


class _Search(Protocol):
    """Finds candidates for near-duplicates: all of them, and few others."""

    def search(self, block: Batch) -> Found:
        """Candidates among the firsts, for each image."""

    def compare(self, block: Batch, others: Batch) -> Found:
        """Candidates among other images, for each image."""

    def add(self, firsts: Batch) -> None:
        """Add firsts."""


class _EmbeddingSearch:
    """Candidates by embeddings, within a radius in few dimensions."""

    def __init__(self, limit: float) -> None:
        self._faiss = _import_faiss()
        self._radius = 2 * limit + MARGIN  # squared distance of unit vectors
        self._kept = _Rows()
        self._projection: Any = None
        self._index: Any = None

    def search(self, block: Batch) -> Found:
        points = self._project(block)
        if self._index is None:
            self._index = self._faiss.IndexFlatL2(points.shape[1])
        found = self._within(self._index, points)
        if self._projection is not None and len(found[1]) > CROWDED * len(points):
            self._use_all_dimensions()
        return found

    def compare(self, block: Batch, others: Batch) -> Found:
        points = self._project(block)
        index = self._faiss.IndexFlatL2(points.shape[1])
        if len(others):
            index.add(self._project(others))
        return self._within(index, points)

    def add(self, firsts: Batch) -> None:
        if len(firsts):
            self._kept.append(firsts.embeddings)
            self._index.add(self._project(firsts))

    def _project(self, block: Batch) -> npt.NDArray[np.float32]:
        assert block.embeddings is not None
        points = block.embeddings.astype(np.float32)
        norms = np.linalg.norm(points, axis=1, keepdims=True)
        points /= np.where(norms > 0, norms, 1)
        if self._index is None and points.shape[1] > PROJECTED and len(points) == BLOCK:
            self._projection = self._faiss.PCAMatrix(points.shape[1], PROJECTED)
            self._projection.train(points)
        return points if self._projection is None else self._projection.apply(points)

    def _within(self, index: Any, points: npt.NDArray[np.float32]) -> Found:
        bounds, _, numbers = index.range_search(points, self._radius)
        return bounds.astype(np.int64), numbers

    def _use_all_dimensions(self) -> None:
        self._projection = None
        self._index = self._faiss.IndexFlatL2(self._kept.take([0]).shape[1])
        for chunk in self._kept.chunks():
            self._index.add(self._project(Batch(chunk)))


class _HashSearch:
    """Candidates by perceptual hashes, within a number of bits."""

    def __init__(self, limit: int) -> None:
        self._faiss = _import_faiss()
        self._radius = limit  # results are nearer than that
        self._index = self._faiss.IndexBinaryFlat(HASH_BITS)

    def search(self, block: Batch) -> Found:
        return self._within(self._index, _as_bytes(block))

    def compare(self, block: Batch, others: Batch) -> Found:
        index = self._faiss.IndexBinaryFlat(HASH_BITS)
        index.add(_as_bytes(others))
        return self._within(index, _as_bytes(block))

    def add(self, firsts: Batch) -> None:
        self._index.add(_as_bytes(firsts))

    def _within(self, index: Any, codes: npt.NDArray[np.uint8]) -> Found:
        bounds, _, numbers = index.range_search(codes, self._radius)
        return bounds.astype(np.int64), numbers


def _as_bytes(batch: Batch) -> npt.NDArray[np.uint8]:
    assert batch.hashes is not None
    return np.ascontiguousarray(batch.hashes).view(np.uint8).reshape(-1, HASH_BITS // 8)


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise SettingsError(
            "looking for near-duplicates needs the package faiss, which is not installed: "
            "pip install 'rudalle-flows[duplicates]'"
        ) from None
    return faiss
