"""How the tokens of a batch are drawn, and what was drawn, as tensors that a kernel reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

UNGUIDED = -1
"""In `DrawSettings.empty_row`: the image of this row is not guided."""

NO_IMAGE = -2
"""In `DrawSettings.empty_row`: the row is no image, and nothing is drawn for it."""


class DrawSettings(NamedTuple):
    """How the token of each row is drawn, in the order of the kernel's arguments.

    Attributes:
        temperature: float32 [R].
        top_k: int32 [R], 0 is all.
        top_p: float32 [R].
        guidance: float32 [R].
        empty_row: int32 [R], for a guided image the row that holds it with the empty text, else
            `UNGUIDED`; `NO_IMAGE` for rows that are no images.
        seeds: int64 [R].
        places: int64 [R, L], what keys the noise of each token.
        given: int64 [R, L], tokens that are given, negative where they are drawn.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    guidance: Tensor
    empty_row: Tensor
    seeds: Tensor
    places: Tensor
    given: Tensor

    def set_rows(self, rows: DrawSettings) -> None:
        """Overwrite the first rows; all others become `NO_IMAGE`."""
        self.empty_row.fill_(NO_IMAGE)
        for static, values in zip(self, rows, strict=True):
            static[: len(values)].copy_(values)


def no_images(rows: int, length: int, device: torch.device) -> DrawSettings:
    """Settings of rows that are no images."""

    def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.zeros(rows, *shape, dtype=dtype, device=device)

    def fields() -> Iterator[Tensor]:
        yield zeros(torch.float32) + 1
        yield zeros(torch.int32)
        yield zeros(torch.float32) + 1
        yield zeros(torch.float32) + 1
        yield zeros(torch.int32) + NO_IMAGE
        yield zeros(torch.int64)
        yield zeros(torch.int64, length)
        yield zeros(torch.int64, length) - 1

    return DrawSettings(*fields())


class Drawn(NamedTuple):
    """Where the kernel writes.

    Attributes:
        tokens: int64 [R, L].
        logprobs: float32 [R, L], in nats, of the model itself: without guidance or temperature.
        latest: int64 [R], the token that each row reads next.
    """

    tokens: Tensor
    logprobs: Tensor
    latest: Tensor
