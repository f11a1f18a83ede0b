"""Resizing of batches of uint8 images on any device, bit-identical to Pillow.

Source: Pillow's `Resample.c`, which preprocesses the images of ruCLIP. It uses a triangle or cubic
filter, widened when shrinking, in 22-bit fixed point; first along the rows, then along the columns,
with rounding to uint8 in between. (For images that are not square, newer versions of Pillow may
start with the columns.) All arithmetic is in integers, so the result does not depend on batch,
thread count or device.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

PRECISION_BITS = 22
"""Fractional bits of a filter weight."""

Filter = Literal["bilinear", "bicubic"]

REACH: dict[Filter, float] = {"bilinear": 1.0, "bicubic": 2.0}
"""Radius of each filter in pixels, when enlarging."""

CUBIC = -0.5
"""Slope of the cubic filter at distance 1, as in Pillow: the Catmull-Rom spline."""


def resize_square(images: Tensor, side: int) -> Tensor:
    """Resize square images: uint8 [N, C, S, S] to [N, C, side, side], bilinear.

    Raises:
        ValueError: other dtype or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(f"expected uint8 [N, C, S, S], found {images.dtype} {list(images.shape)}")
    if images.shape[3] == side:
        return images
    return resize(images, side, side)


def resize(images: Tensor, height: int, width: int, kind: Filter = "bilinear") -> Tensor:
    """Resize images: uint8 [N, C, H, W] to [N, C, height, width]."""
    if images.shape[3] != width:
        images = _resample(images.transpose(2, 3), width, kind).transpose(2, 3)
    return images if images.shape[2] == height else _resample(images, height, kind)


def filter_taps(size_in: int, size_out: int, kind: Filter = "bilinear") -> tuple[Tensor, Tensor]:
    """The inputs of each output of a filter, and their weights.

    Returns:
        Positions, int64 [taps, size_out], and weights in units of 2**-22, int32 [taps, size_out].
    """
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    support = REACH[kind] * stretch
    centre = (torch.arange(size_out, dtype=torch.float64) + 0.5) * scale
    first = (centre - support + 0.5).long().clamp(min=0)
    end = (centre + support + 0.5).long().clamp(max=size_in)
    position = first + torch.arange(math.ceil(support) * 2 + 1)[:, None]  # [taps, out]
    distance = (position + 0.5 - centre).abs() / stretch
    weight = torch.where(position < end, _curve(distance, kind), 0.0)
    weight = weight / weight.sum(dim=0)
    fixed = (weight * 2**PRECISION_BITS + torch.where(weight < 0, -0.5, 0.5)).trunc().int()
    return position.clamp(max=size_in - 1), fixed


def _curve(distance: Tensor, kind: Filter) -> Tensor:
    """The value of the filter at distances of 0 or more."""
    if kind == "bilinear":
        return (1.0 - distance).clamp(min=0.0)
    near = ((CUBIC + 2.0) * distance - (CUBIC + 3.0)) * distance * distance + 1.0
    far = (((distance - 5.0) * distance + 8.0) * distance - 4.0) * CUBIC
    return torch.where(distance < 1.0, near, torch.where(distance < 2.0, far, 0.0))


def _resample(images: Tensor, size: int, kind: Filter) -> Tensor:
    """Resize along the rows: uint8 [N, C, H, W] to [N, C, size, W]."""
    taps = filter_taps(images.shape[2], size, kind)
    position, weight = (table.to(images.device) for table in taps)
    return _resample_rows(images, position, weight)


def _resample_rows(images: Tensor, position: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of rows: uint8 [N, C, S, W] to [N, C, out, W]."""
    pixels = images.int().contiguous()
    # Starts at one half for rounding. Weights add up to 2**22, so the sums stay below 2**31.
    total = pixels.new_full(
        (*images.shape[:2], position.shape[1], images.shape[3]), 2 ** (PRECISION_BITS - 1)
    )
    for rows, factors in zip(position, weight, strict=True):
        total.addcmul_(pixels.index_select(2, rows), factors[:, None])
    return (total >> PRECISION_BITS).clamp_(0, 255).to(torch.uint8)
