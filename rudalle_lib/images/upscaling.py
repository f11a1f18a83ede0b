"""Enlarge images with an RRDBNet, large ones in overlapping tiles.

Paper: Wang et al., "Real-ESRGAN", arXiv 2107.10833. The original implementation cuts every image
into padded patches of 192 pixels. Here an image is cut only if a side exceeds `tile`, so most
images have no seams and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from rudalle_lib.config.sections import UpscaleConfig
from rudalle_lib.errors import SettingsError
from rudalle_lib.images.codecs import encode_image, to_floats, to_uint8
from rudalle_lib.images.file_threads import Pending, files_beside, submit_all
from rudalle_lib.images.rows import map_images
from rudalle_lib.models.layers.one_by_one import one_by_one
from rudalle_lib.models.rrdbnet import RrdbNet
from rudalle_lib.runtime.batching import FixedRows, OnProgress, no_progress
from rudalle_lib.schema.records import PixelsRecord

MAX_CONTEXT = 32
"""Most pixels around a tile that the network sees. Pixels farther away influence the output only
through hundreds of small residuals; the original uses 24."""


@torch.inference_mode()
def upscale(
    model: RrdbNet,
    images: Tensor,
    batch_size: int = 4,
    tile: int | None = None,
    context: int | None = None,
) -> Tensor:
    """Enlarge images by the scale of the network.

    Args:
        model: in evaluation mode; its device and dtype are used.
        images: uint8 [N, 3, H, W], RGB, any size, on any device.
        batch_size: images, or equal tiles of them, per batch; on a GPU batches are filled up.
        tile: images with a longer side are cut into tiles of this side; None never cuts.
        context: pixels around a tile that the network sees; by default its receptive field, at most
            `MAX_CONTEXT`. With the whole receptive field, tiling does not change the result.

    Returns:
        uint8 [N, 3, scale * H, scale * W], on the device of `images`.

    Raises:
        SettingsError: batch size or tile below 1, or a negative context.
        ValueError: images of another type or shape.
    """
    _check_settings(batch_size, tile, context)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected uint8 [N, 3, H, W], found {images.dtype} {list(images.shape)}")
    if context is None:
        context = min(model.config.receptive_radius, MAX_CONTEXT)
    rows = FixedRows(batch_size)
    batches = [
        _upscale_batch(model, batch, tile, context, rows)
        for batch in images.split(batch_size)
        if len(batch)
    ]
    scale = model.config.scale
    none = images.new_empty(0, 3, scale * images.shape[2], scale * images.shape[3])
    return torch.cat(batches) if batches else none


@dataclass(frozen=True)
class Span:
    """A tile along one side: pixels [first, last) of the image; the network sees [start, end)."""

    start: int
    first: int
    last: int
    end: int

    @property
    def seen(self) -> slice:
        """The pixels that the network sees."""
        return slice(self.start, self.end)

    def target(self, scale: int) -> slice:
        """The pixels of the tile in the enlarged image."""
        return slice(self.first * scale, self.last * scale)

    def kept(self, scale: int) -> slice:
        """The pixels of the tile in the network's output; the others are context."""
        return slice((self.first - self.start) * scale, (self.last - self.start) * scale)


def cut(length: int, tile: int, context: int) -> list[Span]:
    """Cut a side of `length` pixels into tiles, each with its context within the image."""
    return [
        Span(
            start=max(first - context, 0),
            first=first,
            last=min(first + tile, length),
            end=min(first + tile + context, length),
        )
        for first in range(0, length, tile)
    ]


def _upscale_batch(
    model: RrdbNet, images: Tensor, tile: int | None, context: int, fixed: FixedRows
) -> Tensor:
    """uint8 [B, 3, H, W] to uint8 [B, 3, scale * H, scale * W]."""
    scale, multiple = model.config.scale, model.config.unshuffle
    height, width = images.shape[2:]
    padded = _pad_to_multiple(images, multiple)
    side = max(padded.shape[2:])
    # Tiles must start at a block of the pixel-unshuffle (scale 2).
    tile = side if tile is None or side <= tile else _round_up(tile, multiple)
    context = _round_up(context, multiple)
    enlarged = images.new_empty(*images.shape[:2], scale * padded.shape[2], scale * padded.shape[3])
    for rows in cut(padded.shape[2], tile, context):
        for columns in cut(padded.shape[3], tile, context):
            output = _enlarge(model, padded[:, :, rows.seen, columns.seen], fixed)
            enlarged[:, :, rows.target(scale), columns.target(scale)] = output[
                :, :, rows.kept(scale), columns.kept(scale)
            ]
    return enlarged[:, :, : scale * height, : scale * width]


def _enlarge(model: RrdbNet, images: Tensor, fixed: FixedRows) -> Tensor:
    weight = model.conv_first.weight
    pixels = to_floats(images.to(weight.device)).to(weight.dtype)
    return to_uint8(fixed.apply(partial(one_by_one, model), pixels)).to(images.device)


def _pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Pad each side to a multiple by repeating the last row and column."""
    below, right = (-images.shape[2]) % multiple, (-images.shape[3]) % multiple
    if not below and not right:
        return images
    return F.pad(images.float(), (0, right, 0, below), mode="replicate").to(images.dtype)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _check_settings(batch_size: int, tile: int | None, context: int | None) -> None:
    for name, value, minimum in (
        ("batch_size", batch_size, 1),
        ("tile", tile, 1),
        ("context", context, 0),
    ):
        if value is not None and value < minimum:
            raise SettingsError(f"upscale.{name} must be at least {minimum}, found {value}")


def upscale_rows(
    model: RrdbNet,
    rows: Sequence[PixelsRecord],
    section: UpscaleConfig,
    on_progress: OnProgress = no_progress,
) -> Pending[PixelsRecord]:
    """The upscale stage: enlarge images, as PNG files, which are encoded beside a GPU.

    Args:
        model: in evaluation mode; its device and dtype are used.
        rows: images to enlarge; all must have a file.
        section: tile and batch size.
        on_progress: called with the numbers of enlarged images and of all images.

    Returns:
        One row per image, in order.

    Raises:
        OutOfMemoryError: a single image does not fit into memory.
    """
    device = model.conv_first.weight.device

    files = files_beside(device)

    def work(batch: Sequence[int], images: Tensor) -> list[Future[PixelsRecord]]:
        large = upscale(model, images.to(device), section.batch_size, section.tile).cpu()
        return submit_all(files, _record, [rows[index] for index in batch], large)

    what = "upscaling a single image"
    return Pending(map_images(rows, section.batch_size, work, what, on_progress, files))


def _record(row: PixelsRecord, image: Tensor) -> PixelsRecord:
    height, width = image.shape[1:]
    return PixelsRecord(row.image_id, row.prompt_id, width, height, encode_image(image))
