"""Enlarging pictures with an RRDBNet: whole where they fit, in overlapping tiles where not.

Paper: Wang et al., "Real-ESRGAN", arXiv 2107.10833. The reference cuts every picture into padded
192-px patches; here a picture is taken whole unless a side exceeds `tile`, so nothing is
computed twice, and no seam can arise in most pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rudalle_lib.errors import SettingsError
from rudalle_lib.images import to_floats, to_uint8
from rudalle_lib.models.one_by_one import one_by_one
from rudalle_lib.models.rrdbnet import RrdbNet

#: Pixels that a tile sees beyond its own edge, at most. What lies farther off reaches a deep
#: network's output only through hundreds of small residuals; the reference uses 24.
MAX_CONTEXT = 32


@torch.inference_mode()
def upscale(
    model: RrdbNet,
    images: Tensor,
    batch_size: int = 4,
    tile: int | None = None,
    context: int | None = None,
) -> Tensor:
    """Pictures uint8 [N, 3, H, W] to uint8 [N, 3, scale * H, scale * W] on the same device.

    Args:
        model: in evaluation mode; its device and dtype are used.
        images: RGB, any size.
        batch_size: pictures, or equal tiles of them, that go through the network at once.
        tile: pictures with a longer side are cut into tiles of this side; None never cuts.
        context: pixels around a tile that go in with it; by default all that the network can
            reach, at most `MAX_CONTEXT`. With all of them a tiled picture equals a whole one.

    Raises:
        SettingsError: batch size or tile below 1, or a negative context.
        ValueError: images of another type or shape.
    """
    _check_settings(batch_size, tile, context)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected uint8 [N, 3, H, W], found {images.dtype} {list(images.shape)}")
    if context is None:
        context = min(model.config.receptive_radius, MAX_CONTEXT)
    batches = [
        _upscale_batch(model, batch, tile, context)
        for batch in images.split(batch_size)
        if len(batch)
    ]
    scale = model.config.scale
    none = images.new_empty(0, 3, scale * images.shape[2], scale * images.shape[3])
    return torch.cat(batches) if batches else none


@dataclass(frozen=True)
class Span:
    """A tile along one side: pixels [first, last) of the picture, seen with [start, end)."""

    start: int
    first: int
    last: int
    end: int

    @property
    def seen(self) -> slice:
        """What goes into the network."""
        return slice(self.start, self.end)

    def target(self, scale: int) -> slice:
        """Where the tile lies in the enlarged picture."""
        return slice(self.first * scale, self.last * scale)

    def kept(self, scale: int) -> slice:
        """What is kept of the network's output."""
        return slice((self.first - self.start) * scale, (self.last - self.start) * scale)


def cut(length: int, tile: int, context: int) -> list[Span]:
    """Cut a side into tiles, each with its context as far as the picture goes."""
    return [
        Span(
            start=max(first - context, 0),
            first=first,
            last=min(first + tile, length),
            end=min(first + tile + context, length),
        )
        for first in range(0, length, tile)
    ]


def _upscale_batch(model: RrdbNet, images: Tensor, tile: int | None, context: int) -> Tensor:
    """uint8 [B, 3, H, W] to uint8 [B, 3, scale * H, scale * W]."""
    scale, multiple = model.config.scale, model.config.unshuffle
    height, width = images.shape[2:]
    padded = _pad_to_multiple(images, multiple)
    side = max(padded.shape[2:])
    # Tiles begin where the pixel-unshuffle of x2 begins a block.
    tile = side if tile is None or side <= tile else _round_up(tile, multiple)
    context = _round_up(context, multiple)
    enlarged = images.new_empty(*images.shape[:2], scale * padded.shape[2], scale * padded.shape[3])
    for rows in cut(padded.shape[2], tile, context):
        for columns in cut(padded.shape[3], tile, context):
            bigger = _enlarge(model, padded[:, :, rows.seen, columns.seen])
            enlarged[:, :, rows.target(scale), columns.target(scale)] = bigger[
                :, :, rows.kept(scale), columns.kept(scale)
            ]
    return enlarged[:, :, : scale * height, : scale * width]


def _enlarge(model: RrdbNet, images: Tensor) -> Tensor:
    weight = model.conv_first.weight
    pixels = to_floats(images.to(weight.device)).to(weight.dtype)
    return to_uint8(one_by_one(model, pixels)).to(images.device)


def _pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column where a side is no multiple."""
    below, right = (-images.shape[2]) % multiple, (-images.shape[3]) % multiple
    if not below and not right:
        return images
    return F.pad(images.float(), (0, right, 0, below), mode="replicate").to(images.dtype)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _check_settings(batch_size: int, tile: int | None, context: int | None) -> None:
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("tile", tile, 1),
        ("context", context, 0),
    ):
        if value is not None and value < least:
            raise SettingsError(f"upscale.{name} must be at least {least}, found {value}")
