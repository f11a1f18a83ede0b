"""Near-duplicates: the same as by comparing each image with every earlier one, in any batches."""

from __future__ import annotations

import importlib.abc
import sys

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rudalle_lib.errors import SettingsError
from rudalle_lib.images import duplicates
from rudalle_lib.images.duplicates import Batch, Limits, Near, find_duplicates
from rudalle_lib.images.likeness import cosine_distances


def naive(images: Batch, limits: Limits) -> list[Near | None]:
    """Each image is compared with all earlier firsts, one by one."""
    found: list[Near | None] = []
    for row in range(len(images)):
        near = []
        for first in (other for other in range(row) if found[other] is None):
            distance = bits = None
            if images.embeddings is not None:
                one, other = images.embeddings[row], images.embeddings[first]
                distance = float(cosine_distances(other[None], one)[0])
            if images.hashes is not None:
                bits = int(images.hashes[row] ^ images.hashes[first]).bit_count()
            close = distance is not None and limits.distance is not None
            alike = bits is not None and limits.bits is not None
            if (close and distance < limits.distance) or (alike and bits < limits.bits):  # type: ignore[operator]
                near.append(Near(first, distance, bits))
        found.append(min(near, key=lambda n: (n.distance or 0, n.bits or 0, n.first), default=None))
    return found


def clustered(count: int, size: int, centres: int, spread: float, seed: int) -> Batch:
    """Images around some centres, some of them equal."""
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(centres, size))
    chosen = rng.integers(0, centres, count)
    noise = spread * rng.normal(size=(count, size)) * rng.integers(0, 3, (count, 1))
    hashes = rng.integers(0, 2**64, centres, np.uint64)[chosen]
    flips = np.uint64(1) << rng.integers(0, 64, count, np.uint64)
    return Batch((middle[chosen] + noise).astype(np.float16), hashes ^ flips)


def pieces(images: Batch, sizes: list[int]) -> list[Batch]:
    bounds = np.clip(np.cumsum([0, *sizes]), 0, len(images)).tolist() + [len(images)]
    return [images.rows(slice(a, b)) for a, b in zip(bounds, bounds[1:], strict=False)]


LIMITS = [Limits(0.05), Limits(bits=3), Limits(0.02, 2), Limits(1e-6), Limits(bits=1)]


@pytest.mark.parametrize("limits", LIMITS)
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(0, 60),
    sizes=st.lists(st.integers(0, 20), max_size=8),
)
def test_every_near_duplicate_is_found_whatever_the_batches(
    limits: Limits, seed: int, count: int, sizes: list[int]
) -> None:
    images = clustered(count, 12, 8, 0.15, seed)
    if limits.distance is None:
        images = Batch(None, images.hashes)
    elif limits.bits is None:
        images = Batch(images.embeddings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "BLOCK", 7)
        assert list(find_duplicates(pieces(images, sizes), limits)) == naive(images, limits)


@pytest.mark.parametrize("crowded", [0, 1e9])
def test_the_projection_changes_no_result(monkeypatch: pytest.MonkeyPatch, crowded: float) -> None:
    """Nor does it if it is given up because it tells too few images apart."""
    monkeypatch.setattr(duplicates, "BLOCK", 64)
    monkeypatch.setattr(duplicates, "PROJECTED", 4)
    monkeypatch.setattr(duplicates, "CROWDED", crowded)
    images = Batch(clustered(300, 48, 60, 0.1, 5).embeddings)
    found = list(find_duplicates([images], Limits(0.05)))
    assert found == naive(images, Limits(0.05))
    assert 50 < sum(near is not None for near in found) < 250


def test_what_is_added_later_changes_nothing_before() -> None:
    images = clustered(80, 12, 10, 0.1, 3)
    whole = list(find_duplicates([images], Limits(0.05, 2)))
    for count in (1, 30, 79):
        part = images.rows(slice(0, count))
        assert list(find_duplicates([part], Limits(0.05, 2))) == whole[:count]


def test_the_first_of_a_chain_of_alike_images_stays_and_the_chain_is_not_merged() -> None:
    angles = np.radians([0.0, 10.0, 20.0, 30.0])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)
    found = list(find_duplicates([Batch(points)], Limits(1 - np.cos(np.radians(12.0)))))
    assert [near and near.first for near in found] == [None, 0, None, 2]


def test_no_images_are_allowed() -> None:
    nothing: npt.NDArray[np.float16] = np.empty((0, 8), np.float16)
    assert list(find_duplicates([], Limits(0.1))) == []
    assert list(find_duplicates([Batch(nothing)], Limits(0.1))) == []


def test_without_the_package_one_sentence_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Missing(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> None:
            if name == "faiss":
                raise ImportError(name)

    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(SettingsError, match=r"pip install 'rudalle-flows\[duplicates\]'"):
        list(find_duplicates([clustered(3, 4, 2, 0.1, 0)], Limits(0.1)))
