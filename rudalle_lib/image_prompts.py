"""Image prompts: the borders of a picture, as image tokens, for the decoder to draw on from.

The picture is fitted to the canvas (scaled, and cut at the longer sides, around its middle) and
encoded by the VQ-GAN; the tokens along the asked-for edges are given, the others are drawn. It is
encoded whole, or each border cut out first, so that nothing of the rest shows in its tokens.

Source: ai-forever/ru-dalle, `rudalle/image_prompts.py`, which takes pictures of the right size
only, and square ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rudalle_lib.borders import Borders
from rudalle_lib.errors import ImageError
from rudalle_lib.file_systems import open_input
from rudalle_lib.images import MAX_BYTES, decode_image, to_floats
from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.resampling import resize
from rudalle_lib.sampling import DRAW
from rudalle_lib.storage_errors import clear_errors, public_url

#: Larger pictures are refused: fitting one to the canvas takes some twenty bytes a pixel.
MAX_PIXELS = 16 * 2**20

Strip = tuple[slice, slice]


def read_picture(uri: str, what: str = "image prompt") -> Tensor:
    """The picture at a path or URL, which is not trusted: uint8 [3, H, W]; `what` is for errors.

    Raises:
        StorageError: it cannot be read; a `TransientError` where that may pass.
        ImageError: it is no picture, damaged, or too large.
    """
    with (
        open_input(uri, what) as stream,
        clear_errors(f"read the {what}", uri),
    ):
        data = stream.read(MAX_BYTES + 1)
    return decode_image(data, max_pixels=MAX_PIXELS, name=public_url(uri))


def encode_image_prompt(
    vqgan: VqGan,
    picture: Tensor,
    borders: Borders,
    rows: int,
    columns: int,
    crop_first: bool = False,
) -> Tensor:
    """The tokens that an image prompt gives.

    Args:
        vqgan: the one that the decoder was trained with, in evaluation mode.
        picture: uint8 [3, H, W], any size.
        borders: how much of each edge is kept.
        rows, columns: size of the canvas in tokens.
        crop_first: encode each border on its own.

    Returns:
        int64 [rows, columns] on the CPU: tokens along the borders, `sampling.DRAW` elsewhere.

    Raises:
        ImageError: borders that do not fit the canvas, or leave nothing to draw.
    """
    mask = border_mask(borders, rows, columns)
    factor = vqgan.config.downsampling
    fitted = fit(picture, rows * factor, columns * factor)
    everything = (slice(0, rows), slice(0, columns))
    strips = _strips(borders, rows, columns) if crop_first else [everything]
    tokens = torch.full((rows, columns), DRAW)
    for strip in strips:
        tokens[strip] = _encode(vqgan, fitted, strip)
    return tokens.where(mask, DRAW)


def border_mask(borders: Borders, rows: int, columns: int) -> Tensor:
    """Which tokens of a canvas the borders cover: bool [rows, columns].

    Raises:
        ImageError: a border larger than the canvas, or nothing left to draw.
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


def fit(picture: Tensor, height: int, width: int) -> Tensor:
    """uint8 [3, H, W] to uint8 [3, height, width]: cut around the middle to shape, then resized."""
    _, rows, columns = picture.shape
    kept_rows = max(1, min(rows, round(columns * height / width)))
    kept_columns = max(1, min(columns, round(rows * width / height)))
    top, left = (rows - kept_rows) // 2, (columns - kept_columns) // 2
    cut = picture[:, top : top + kept_rows, left : left + kept_columns]
    return resize(cut[None], height, width)[0]


def _strips(borders: Borders, rows: int, columns: int) -> list[Strip]:
    """The borders; where two overlap at a corner, the later one counts, as in the original."""
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


def _encode(vqgan: VqGan, picture: Tensor, strip: Strip) -> Tensor:
    """Tokens of a part of the picture: int64 [rows, columns] on the CPU."""
    factor = vqgan.config.downsampling
    row, column = (slice(part.start * factor, part.stop * factor) for part in strip)
    weight = vqgan.quant_conv.weight
    pixels = to_floats(picture[None, :, row, column].to(weight.device), -1.0, 1.0)
    return vqgan.encode(pixels.to(weight.dtype))[0].cpu()
