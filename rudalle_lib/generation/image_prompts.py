"""Image prompts: the borders of an image, as image tokens that the decoder continues.

The image is fitted to the canvas (scaled, and cropped around its centre) and encoded by the VQ-GAN.
The tokens along the requested edges are given; the others are drawn. Either the whole image is
encoded, or each border is cropped first, so that its tokens do not depend on the rest of the image.

Source: ai-forever/ru-dalle, `rudalle/image_prompts.py`, which accepts only square images of the
right size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rudalle_lib.errors import ImageError
from rudalle_lib.generation.sampling import DRAW
from rudalle_lib.images.codecs import MAX_BYTES, decode_image, to_floats
from rudalle_lib.images.resampling import resize
from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.schema.borders import Borders
from rudalle_lib.storage.errors import public_url
from rudalle_lib.storage.filesystems import read_start
from rudalle_lib.storage.reading import TABLE, Reading
from rudalle_lib.storage.urls import whole_url

MAX_PIXELS = 16 * 2**20
"""The largest image, in pixels: fitting it to the canvas takes about 20 bytes per pixel."""

Strip = tuple[slice, slice]
"""The rows and columns of a border, in tokens."""


def read_image(uri: str, what: str = "image prompt", rules: Reading = TABLE) -> Tensor:
    """Read an untrusted image from a path or URL.

    Args:
        uri: the path or URL of a PNG, JPEG or WebP file.
        what: what the image is, for error messages.
        rules: time limits, and which hosts are allowed.

    Returns:
        uint8 [3, H, W].

    Raises:
        StorageError: the file cannot be read; a `TransientError` if a retry may succeed.
        ImageError: it is not an image, damaged, or too large.
    """
    data = read_start(whole_url(uri), MAX_BYTES + 1, what, rules)
    return decode_image(data, max_pixels=MAX_PIXELS, name=public_url(uri))


def encode_image_prompt(
    vqgan: VqGan,
    image: Tensor,
    borders: Borders,
    rows: int,
    columns: int,
    crop_first: bool = False,
) -> Tensor:
    """Encode the borders of an image as tokens.

    Args:
        vqgan: the VQ-GAN that the decoder was trained with, in evaluation mode.
        image: uint8 [3, H, W], any size.
        borders: how much of each edge is kept.
        rows: height of the canvas in tokens.
        columns: width of the canvas in tokens.
        crop_first: encode each border on its own.

    Returns:
        int64 [rows, columns] on the CPU: tokens along the borders, `sampling.DRAW` elsewhere.

    Raises:
        ImageError: the borders do not fit the canvas, or leave nothing to draw.
    """
    mask = border_mask(borders, rows, columns)
    factor = vqgan.config.downsampling
    fitted = fit(image, rows * factor, columns * factor)
    whole = (slice(0, rows), slice(0, columns))
    strips = _strips(borders, rows, columns) if crop_first else [whole]
    tokens = torch.full((rows, columns), DRAW)
    for strip in strips:
        tokens[strip] = _encode(vqgan, fitted, strip)
    return tokens.where(mask, DRAW)


def border_mask(borders: Borders, rows: int, columns: int) -> Tensor:
    """A mask of the tokens that the borders cover, bool [rows, columns].

    Raises:
        ImageError: a border is larger than the canvas, or nothing is left to draw.
    """
    if max(borders.up, borders.down) > rows or max(borders.left, borders.right) > columns:
        raise ImageError(
            f"borders {borders} do not fit a canvas of {rows} rows and {columns} columns of tokens"
        )
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    for strip in _strips(borders, rows, columns):
        mask[strip] = True
    if mask.all():
        raise ImageError(f"borders {borders} leave nothing of {rows} x {columns} tokens to draw")
    return mask


def fit(image: Tensor, height: int, width: int) -> Tensor:
    """Crop to the aspect ratio around the centre, and resize.

    Args:
        image: uint8 [3, H, W].
        height: the new height.
        width: the new width.

    Returns:
        uint8 [3, height, width].
    """
    _, rows, columns = image.shape
    kept_rows = max(1, min(rows, round(columns * height / width)))
    kept_columns = max(1, min(columns, round(rows * width / height)))
    top, left = (rows - kept_rows) // 2, (columns - kept_columns) // 2
    cropped = image[:, top : top + kept_rows, left : left + kept_columns]
    return resize(cropped[None], height, width)[0]


def _strips(borders: Borders, rows: int, columns: int) -> list[Strip]:
    """The borders in order; if two overlap at a corner, the later one wins, as in the original."""
    whole_row, whole_column = slice(0, columns), slice(0, rows)
    strips = [
        (slice(rows - borders.down, rows), whole_row),
        (whole_column, slice(columns - borders.right, columns)),
        (whole_column, slice(0, borders.left)),
        (slice(0, borders.up), whole_row),
    ]
    return [
        (row, column)
        for row, column in strips
        if row.stop > row.start and column.stop > column.start
    ]


def _encode(vqgan: VqGan, image: Tensor, strip: Strip) -> Tensor:
    """Encode a part of the image: int64 [rows, columns] on the CPU."""
    factor = vqgan.config.downsampling
    row, column = (slice(part.start * factor, part.stop * factor) for part in strip)
    weight = vqgan.quant_conv.weight
    pixels = to_floats(image[None, :, row, column].to(weight.device), -1.0, 1.0)
    return vqgan.encode(pixels.to(weight.dtype))[0].cpu()
