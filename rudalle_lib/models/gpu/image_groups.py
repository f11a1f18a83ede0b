"""The rows of a batch in groups of one prompt, as a table that a kernel reads on its device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MAX_IMAGES = 16
"""Rows of a group; the smallest number of rows that a matrix unit multiplies."""


class ImageGroups(NamedTuple):
    """Which rows have which prompt.

    Attributes:
        prompt: int32 [G], the prompt of each group.
        rows: int32 [G, `MAX_IMAGES`], the rows of each group, -1 where there is none. A group
            without rows computes nothing.
    """

    prompt: Tensor
    rows: Tensor


def empty_groups(count: int, device: torch.device) -> ImageGroups:
    """Room for a number of groups, all without rows."""
    return ImageGroups(
        torch.zeros(count, dtype=torch.int32, device=device),
        torch.full((count, MAX_IMAGES), -1, dtype=torch.int32, device=device),
    )


def group_rows(prompt_of: Sequence[int]) -> list[tuple[int, list[int]]]:
    """The groups of a batch.

    Args:
        prompt_of: the prompt of each row.

    Returns:
        A prompt and up to `MAX_IMAGES` of its rows per group, prompts in order of appearance.
    """
    rows_of: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompt_of):
        rows_of.setdefault(prompt, []).append(row)
    return [
        (prompt, rows[start : start + MAX_IMAGES])
        for prompt, rows in rows_of.items()
        for start in range(0, len(rows), MAX_IMAGES)
    ]


def set_groups(groups: ImageGroups, found: Sequence[tuple[int, list[int]]]) -> None:
    """Write groups into a table that has room for them; the rest of the table becomes empty."""
    prompt = torch.zeros(len(groups.prompt), dtype=torch.int32)
    rows = torch.full(groups.rows.shape, -1, dtype=torch.int32)
    for group, (of, members) in enumerate(found):
        prompt[group] = of
        rows[group, : len(members)] = torch.tensor(members, dtype=torch.int32)
    groups.prompt.copy_(prompt)
    groups.rows.copy_(rows)
