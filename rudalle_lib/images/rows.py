"""Decode the images of artifact rows, in batches of equal size, ahead of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from rudalle_lib.images.codecs import decode_image
from rudalle_lib.images.file_threads import AT_ONCE
from rudalle_lib.runtime.batching import OnProgress, group_by_key, map_batches, no_progress
from rudalle_lib.schema.records import PixelsRecord

Result = TypeVar("Result")

BATCHES_AHEAD = 2
"""Batches that are decoded before the network needs them."""


def map_images(
    rows: Sequence[PixelsRecord],
    batch_size: int,
    work: Callable[[Sequence[int], Tensor], Sequence[Result]],
    what: str,
    on_progress: OnProgress = no_progress,
    files: Executor = AT_ONCE,
) -> list[Result]:
    """Process images in batches of equal size; only those of a few batches are in memory decoded.

    Args:
        rows: images; all must have a file.
        batch_size: images per batch; halved if memory runs out.
        work: gets the indices of some rows and their images, uint8 [B, 3, H, W] on the CPU, and
            returns one result per image.
        what: describes the work on one image in errors, as in "scoring a single image".
        on_progress: called with the numbers of finished images and of all images.
        files: decodes the images, ahead of `work` if it has threads.

    Returns:
        One result per row, in order.

    Raises:
        OutOfMemoryError: a single image does not fit into memory.
        ImageError: a row without a readable image.
    """
    sizes = [(row.width, row.height) for row in rows]
    order = [index for batch in group_by_key(sizes, batch_size) for index in batch]
    decoded = _DecodedAhead(rows, order, BATCHES_AHEAD * batch_size, files)

    def decode_batch(batch: Sequence[int]) -> Sequence[Result]:
        return work(batch, torch.stack([decoded.take(index) for index in batch]))

    return map_batches(sizes, batch_size, decode_batch, what, on_progress)


class _DecodedAhead:
    """The images of rows, decoded a number of images before they are taken."""

    def __init__(
        self, rows: Sequence[PixelsRecord], order: Sequence[int], ahead: int, files: Executor
    ) -> None:
        self._rows, self._files, self._todo = rows, files, iter(order)
        self._started: dict[int, Future[Tensor]] = {}
        if files is not AT_ONCE:
            for index in islice(self._todo, ahead):
                self._start(index)

    def take(self, index: int) -> Tensor:
        """The image of a row; one that was taken before, for a batch that failed, again."""
        following = next(self._todo, None) if self._files is not AT_ONCE else None
        if following is not None:
            self._start(following)
        future = self._started.pop(index, None)
        return unpack_image(self._rows[index]) if future is None else future.result()

    def _start(self, index: int) -> None:
        self._started[index] = self._files.submit(unpack_image, self._rows[index])


def unpack_image(row: PixelsRecord, keep_alpha: bool = False) -> Tensor:
    """Decode the image of a row.

    Args:
        row: an image; must have a file.
        keep_alpha: return an image that has transparency with its alpha channel.

    Returns:
        uint8 [3, H, W], RGB, or [4, H, W], RGBA, on the CPU.

    Raises:
        ImageError: the row has no readable image.
    """
    return decode_image(row.image or b"", name=row.image_id, keep_alpha=keep_alpha)
