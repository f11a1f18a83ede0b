"""Bilinear resizing of square uint8 pictures, to the bit as Pillow does it, in batches anywhere.

Source: Pillow's `Resample.c`, which ruCLIP's pictures go through: a triangle filter, widened when
shrinking, in 22-bit fixed point, along the rows first and rounded to uint8 in between (for
pictures that are not square, newer Pillows may take the columns first). Whole numbers all the
way, so batch, thread count and device make no difference.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PRECISION_BITS = 22


def resize_square(images: Tensor, side: int) -> Tensor:
    """Pictures uint8 [N, C, S, S] to uint8 [N, C, side, side]."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(f"expected uint8 [N, C, S, S], found {images.dtype} {list(images.shape)}")
    if images.shape[3] == side:
        return images
    position, weight = (table.to(images.device) for table in filter_taps(images.shape[3], side))
    narrowed = _resample_rows(images.transpose(2, 3), position, weight)  # [N, C, side, S]
    return _resample_rows(narrowed.transpose(2, 3), position, weight)  # [N, C, side, side]


def filter_taps(size_in: int, size_out: int) -> tuple[Tensor, Tensor]:
    """Which inputs make each output, and how much: int64 and int32 (in 2**-22) [taps, size_out]."""
    scale = size_in / size_out
    support = max(scale, 1.0)
    centre = (torch.arange(size_out, dtype=torch.float64) + 0.5) * scale
    first = (centre - support + 0.5).long().clamp(min=0)
    end = (centre + support + 0.5).long().clamp(max=size_in)
    position = first + torch.arange(math.ceil(support) * 2 + 1)[:, None]  # [taps, out]
    distance = (position + 0.5 - centre).abs() / support
    weight = torch.where(position < end, (1.0 - distance).clamp(min=0.0), 0.0)
    weight = weight / weight.sum(dim=0)
    fixed = (0.5 + weight * 2**PRECISION_BITS).floor().int()
    return position.clamp(max=size_in - 1), fixed


def _resample_rows(images: Tensor, position: Tensor, weight: Tensor) -> Tensor:
    """uint8 [N, C, S, W] to weighted sums of its rows, uint8 [N, C, out, W]."""
    pixels = images.int().contiguous()
    # Begins with one half, for rounding; weights add up to 2**22, so sums stay below 2**31.
    total = pixels.new_full(
        (*images.shape[:2], position.shape[1], images.shape[3]), 2 ** (PRECISION_BITS - 1)
    )
    for rows, factors in zip(position, weight, strict=True):
        total.addcmul_(pixels.index_select(2, rows), factors[:, None])
    return (total >> PRECISION_BITS).clamp_(0, 255).to(torch.uint8)
