"""Splits of the dataset, such as train and validation: which prompt is in which.

A hash of the text decides. So all images of a prompt, and all prompts with one text, are in one
split, and neither other prompts nor the size of shards ever move one.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

import pyarrow as pa

COLUMN = "split"
"""Column of the metadata that names the split of an image, if there are splits."""


def split_of(text: str, splits: Mapping[str, float]) -> str:
    """The split of a prompt.

    Args:
        text: The prompt as given.
        splits: Shares by name; their sum is 1.
    """
    place = place_of(text)
    reached = 0.0
    for name in sorted(splits):  # their order in a configuration is in no fingerprint
        reached += splits[name]
        if place < reached:
            return name
    return max(splits)  # the sum of the shares may be slightly less than 1


def place_of(text: str) -> float:
    """A number in [0, 1) that a text always has, and that is evenly spread over texts."""
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") / 2**64


def with_splits(
    extras: pa.Table, texts: Mapping[str, str], splits: Mapping[str, float] | None
) -> pa.Table:
    """The pass-through columns of a shard with the split of each prompt as the first of them.

    Args:
        extras: `prompt_id`, then the pass-through columns.
        texts: Prompts as given, by prompt id.
        splits: Shares by name; without splits, the table is returned as it is.
    """
    if not splits:
        return extras
    names = [split_of(texts[name], splits) for name in extras.column("prompt_id").to_pylist()]
    return extras.add_column(1, COLUMN, pa.array(names, pa.string()))
