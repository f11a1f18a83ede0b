"""Triton kernels of group norm and SiLU in channels-last layout; see `group_norm`.

The first one computes mean and variance of every channel over a few pixels. PyTorch combines them
to those of the groups, in a fixed order. The second kernel normalises. Sums are in float32, and the
result is rounded once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

TILE = 4096
"""Numbers that a program holds: pixels times channels."""

WARPS = 4
"""Warps of a program: 32 numbers per thread."""


def normalise_channels_last(norm: nn.GroupNorm, x: Tensor, activate: bool) -> Tensor:
    """Apply a group norm, and SiLU if asked for.

    Args:
        norm: with a power of two of channels.
        x: [B, C, H, W], channels-last.
        activate: apply SiLU.

    Returns:
        [B, C, H, W], channels-last, in the dtype of `x`.
    """
    images, channels = x.shape[:2]
    pixels, groups = x.shape[2] * x.shape[3], norm.num_groups
    tile = min(pixels & -pixels, max(1, TILE // channels))  # a power of two that divides them
    tiles = pixels // tile
    means = torch.empty(images, tiles, channels, dtype=torch.float32, device=x.device)
    variances = torch.empty_like(means)
    grid = (images * tiles,)
    channel_moments[grid](x, means, variances, C=channels, TILE=tile, num_warps=WARPS)
    grouped = images, tiles, groups, channels // groups
    # All parts have equally many pixels: the variance of all is that of the means plus the mean of
    # the variances.
    between, mean = torch.var_mean(means.view(grouped), dim=(1, 3), correction=0)
    within = variances.view(grouped).mean(dim=(1, 3))
    normalised = torch.empty_like(x)
    normalise_tile[grid](
        x, mean, between, within, norm.weight, norm.bias, normalised, tiles, norm.eps,
        C=channels, GROUPS=groups, TILE=tile, ACTIVATE=activate, num_warps=WARPS,
    )  # fmt: skip
    return normalised


@triton.jit
def channel_moments(x, means, variances, C: tl.constexpr, TILE: tl.constexpr):
    """Mean and variance of each channel over `TILE` pixels; grid [images * tiles]."""
    tile = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, C)
    at = (tile * TILE + tl.arange(0, TILE))[:, None] * C + c[None, :]
    values = tl.load(x + at).to(tl.float32)
    mean = tl.sum(values, axis=0) / TILE
    centred = values - mean[None, :]
    tl.store(means + tile * C + c, mean)
    tl.store(variances + tile * C + c, tl.sum(centred * centred, axis=0) / TILE)


@triton.jit
def normalise_tile(
    x, mean, between, within, weight, bias, normalised, tiles, eps,
    C: tl.constexpr, GROUPS: tl.constexpr, TILE: tl.constexpr, ACTIVATE: tl.constexpr,
):  # fmt: skip
    """Normalise `TILE` pixels; grid [images * tiles]."""
    tile = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, C)
    group = (tile // tiles) * GROUPS + c // (C // GROUPS)
    at = (tile * TILE + tl.arange(0, TILE))[:, None] * C + c[None, :]
    values = tl.load(x + at).to(tl.float32)
    variance = tl.load(between + group) + tl.load(within + group)
    scale = tl.load(weight + c).to(tl.float32) / tl.sqrt(variance + eps)
    values = (values - tl.load(mean + group)[None, :]) * scale[None, :]
    values += tl.load(bias + c).to(tl.float32)[None, :]
    if ACTIVATE:
        values = values / (1.0 + tl.exp(-values))
    tl.store(normalised + at, values.to(normalised.dtype.element_ty))
