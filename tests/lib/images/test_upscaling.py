"""Upscaling in tiles equals upscaling the whole image, for any size, batch and scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rudalle_lib.config.sections import UpscaleConfig
from rudalle_lib.errors import SettingsError
from rudalle_lib.images.codecs import decode_image, encode_image
from rudalle_lib.images.upscaling import MAX_CONTEXT, cut, upscale, upscale_rows
from rudalle_lib.models.rrdbnet import RrdbNet, RrdbNetConfig
from rudalle_lib.schema.records import PixelsRecord


def network(scale: int) -> RrdbNet:
    """Random weights with contrast in the output, and a receptive field within a tile's context."""
    config = RrdbNetConfig(scale, num_features=6, num_blocks=0 if scale == 2 else 1, growth=4)
    assert config.receptive_radius <= MAX_CONTEXT
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(scale)
        model = RrdbNet(config).eval().requires_grad_(False)
    model.conv_last.weight.mul_(8)
    torch.nn.init.constant_(model.conv_last.get_parameter("bias"), 0.5)
    return model


def noise(count: int, height: int, width: int) -> Tensor:
    rng = np.random.default_rng(height)
    return torch.from_numpy(rng.integers(0, 256, (count, 3, height, width), dtype=np.uint8))


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize(("height", "width", "tile"), [(40, 64, 24), (33, 21, 16), (50, 17, 17)])
def test_a_tiled_image_equals_a_whole_one(scale: int, height: int, width: int, tile: int) -> None:
    """Within one level of 255."""
    model, images = network(scale), noise(2, height, width)
    whole = upscale(model, images)
    assert whole.shape == (2, 3, scale * height, scale * width)
    assert whole.float().std() > 5, "an image of one colour would hide seams"
    tiled = upscale(model, images, batch_size=1, tile=tile)
    assert (tiled.int() - whole.int()).abs().max() <= 1


def test_too_little_context_leaves_seams() -> None:
    model, images = network(2), noise(1, 40, 40)
    seams = upscale(model, images, tile=16, context=0)
    assert (seams.int() - upscale(model, images).int()).abs().max() > 1


def test_an_image_smaller_than_the_tile_is_processed_whole() -> None:
    model, calls = network(2), []
    model.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].shape))
    upscale(model, noise(3, 20, 24), batch_size=2, tile=24)
    assert calls == [(1, 3, 20, 24)] * 3  # on a CPU one at a time


def test_values_are_rounded_and_clamped() -> None:
    model, images = network(4), noise(1, 8, 8)
    expected = (model(images.float() / 255) * 255).round().clamp(0, 255)
    assert upscale(model, images).float().equal(expected)


def test_odd_sides_are_padded_with_their_edge() -> None:
    model, images = network(2), noise(1, 9, 7)
    padded = torch.nn.functional.pad(images.float(), (0, 1, 0, 1), mode="replicate")
    expected = upscale(model, padded.to(torch.uint8))[:, :, :18, :14]
    assert upscale(model, images).equal(expected)


def test_zero_images_are_allowed() -> None:
    assert upscale(network(4), noise(1, 5, 6)[:0]).shape == (0, 3, 20, 24)


def test_tiles_cover_a_side_exactly_once() -> None:
    spans = cut(50, 16, 4)
    assert [(span.first, span.last) for span in spans] == [(0, 16), (16, 32), (32, 48), (48, 50)]
    assert [(span.start, span.end) for span in spans] == [(0, 20), (12, 36), (28, 50), (44, 50)]


def test_invalid_arguments_are_rejected() -> None:
    model, images = network(2), noise(1, 8, 8)
    with pytest.raises(SettingsError, match="upscale.batch_size must be at least 1, found 0"):
        upscale(model, images, batch_size=0)
    with pytest.raises(SettingsError, match="upscale.tile must be at least 1, found 0"):
        upscale(model, images, tile=0)
    with pytest.raises(ValueError, match=r"uint8 \[N, 3, H, W\], found torch.float32"):
        upscale(model, images.float())


def test_rows_are_enlarged_in_order() -> None:
    model, section = network(2), UpscaleConfig(batch_size=2)
    sizes = [(8, 8), (8, 12), (8, 8), (8, 8)]
    images = [noise(1, *size)[0] for size in sizes]
    rows = [
        PixelsRecord(f"a-{n:03d}", "a", image.shape[2], image.shape[1], encode_image(image))
        for n, image in enumerate(images)
    ]
    steps: list[tuple[int, int]] = []
    large = upscale_rows(model, rows, section, lambda *step: steps.append(step)).rows()
    assert [row.image_id for row in large] == [row.image_id for row in rows]
    assert [(row.height, row.width) for row in large] == [(2 * h, 2 * w) for h, w in sizes]
    for row, image in zip(large, images, strict=True):
        assert row.image is not None
        assert decode_image(row.image).equal(upscale(model, image[None])[0])
    assert steps == [(2, 4), (3, 4), (4, 4)]
    assert upscale_rows(model, [], section).rows() == []
