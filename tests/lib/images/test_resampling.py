"""Resizing is bit-identical to the filters of Pillow in any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rudalle_lib.images.resampling import Filter, resize, resize_square

SIDES = st.integers(1, 80)


def by_pillow(image: torch.Tensor, side: int, kind: Filter = "bilinear") -> torch.Tensor:
    pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
    resized = pixels.resize((side, side), Image.Resampling[kind.upper()])
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def noise(seed: int, count: int, side: int) -> torch.Tensor:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    return torch.from_numpy(pixels)


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, st.integers(0, 2**32))
def test_equals_pillow(kind: Filter, side: int, new_side: int, seed: int) -> None:
    images = noise(seed, 2, side)
    expected = torch.stack([by_pillow(image, new_side, kind) for image in images])
    assert resize(images, new_side, new_side, kind).equal(expected)
    assert kind == "bicubic" or resize_square(images, new_side).equal(expected)


@pytest.mark.parametrize(("side", "new_side"), [(256, 224), (512, 224), (200, 336), (1000, 16)])
def test_equals_pillow_at_sizes_in_use(side: int, new_side: int) -> None:
    images = noise(0, 1, side)
    assert resize_square(images, new_side)[0].equal(by_pillow(images[0], new_side))


def test_white_and_black_images_keep_their_colour() -> None:
    for value in (0, 255):
        images = torch.full((1, 3, 31, 31), value, dtype=torch.uint8)
        assert resize_square(images, 77).unique().tolist() == [value]


def test_images_that_are_not_square_or_not_uint8_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"uint8 \[N, C, S, S\], found torch.uint8 \[1, 3, 4, 5\]"):
        resize_square(torch.zeros(1, 3, 4, 5, dtype=torch.uint8), 3)
    with pytest.raises(ValueError, match="found torch.float32"):
        resize_square(torch.zeros(1, 3, 4, 4), 3)
