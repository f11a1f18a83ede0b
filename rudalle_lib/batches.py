"""Batches of things that must be alike, such as pictures of one size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence


def alike(keys: Sequence[Hashable], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of equal keys, each in order; keys come in order of first appearance."""
    by_key: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        by_key[key].append(index)
    for indices in by_key.values():
        for start in range(0, len(indices), batch_size):
            yield indices[start : start + batch_size]
