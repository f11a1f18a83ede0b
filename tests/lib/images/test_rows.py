"""Images of artifact rows, decoded in batches of equal size."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from rudalle_lib.errors import ImageError, OutOfMemoryError
from rudalle_lib.images.codecs import encode_image
from rudalle_lib.images.rows import map_images, unpack_image
from rudalle_lib.schema.records import PixelsRecord


def row(level: int, height: int = 4, width: int = 4, channels: int = 3) -> PixelsRecord:
    """An image in which all values are `level`."""
    pixels = torch.full((channels, height, width), level, dtype=torch.uint8)
    return PixelsRecord(f"a-{level:03d}", "a", width, height, encode_image(pixels))


def test_batches_have_one_size_and_results_keep_the_order() -> None:
    rows = [row(1), row(2, width=6), row(3), row(4), row(5, width=6)]
    shapes: list[tuple[int, ...]] = []

    def work(batch: Sequence[int], images: Tensor) -> list[int]:
        shapes.append(tuple(images.shape))
        assert images.dtype == torch.uint8 and len(batch) == len(images)
        return [int(image.max()) for image in images]

    assert map_images(rows, 2, work, "it") == [1, 2, 3, 4, 5]
    assert shapes == [(2, 3, 4, 4), (1, 3, 4, 4), (2, 3, 4, 6)]


def test_an_image_that_does_not_fit_into_memory_is_named() -> None:
    def work(batch: Sequence[int], images: Tensor) -> list[int]:
        raise MemoryError

    with pytest.raises(OutOfMemoryError, match="scoring a single image"):
        map_images([row(1), row(2)], 2, work, "scoring a single image")


def test_a_row_without_an_image_is_an_error() -> None:
    empty = PixelsRecord("a-000", "a", 4, 4, None)
    with pytest.raises(ImageError, match="a-000 is not a readable"):
        unpack_image(empty)


def test_alpha_is_kept_on_request() -> None:
    transparent = row(0, channels=4)
    assert unpack_image(transparent, keep_alpha=True).shape == (4, 4, 4)
    assert unpack_image(transparent).equal(torch.full((3, 4, 4), 255, dtype=torch.uint8))
    assert unpack_image(row(7), keep_alpha=True).shape == (3, 4, 4)
