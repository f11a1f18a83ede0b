"""Enlarging: tiles give what the whole picture gives, for any size, batch and scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rudalle_lib.errors import SettingsError
from rudalle_lib.models.rrdbnet import RrdbNet, RrdbNetConfig
from rudalle_lib.upscaling import MAX_CONTEXT, cut, upscale


def network(scale: int) -> RrdbNet:
    """Random weights whose output has contrast; it reaches no farther than a tile's context."""
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
def test_tiled_equals_whole(scale: int, height: int, width: int, tile: int) -> None:
    """To one step of 255."""
    model, images = network(scale), noise(2, height, width)
    whole = upscale(model, images)
    assert whole.shape == (2, 3, scale * height, scale * width)
    assert whole.float().std() > 5, "a picture of one colour would prove little"
    tiled = upscale(model, images, batch_size=1, tile=tile)
    assert (tiled.int() - whole.int()).abs().max() <= 1


def test_too_little_context_shows() -> None:
    """The check above can fail: without context there are seams."""
    model, images = network(2), noise(1, 40, 40)
    seams = upscale(model, images, tile=16, context=0)
    assert (seams.int() - upscale(model, images).int()).abs().max() > 1


def test_a_picture_within_the_tile_goes_through_once() -> None:
    model, calls = network(2), []
    model.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].shape))
    upscale(model, noise(3, 20, 24), batch_size=2, tile=24)
    assert calls == [(1, 3, 20, 24)] * 3  # on a CPU one at a time


def test_values_are_rounded_and_clamped() -> None:
    model, images = network(4), noise(1, 8, 8)
    expected = (model(images.float() / 255) * 255).round().clamp(0, 255)
    assert upscale(model, images).float().equal(expected)


def test_odd_sides_are_padded_by_their_edge() -> None:
    model, images = network(2), noise(1, 9, 7)
    padded = torch.nn.functional.pad(images.float(), (0, 1, 0, 1), mode="replicate")
    expected = upscale(model, padded.to(torch.uint8))[:, :, :18, :14]
    assert upscale(model, images).equal(expected)


def test_no_pictures() -> None:
    assert upscale(network(4), noise(1, 5, 6)[:0]).shape == (0, 3, 20, 24)


def test_tiles_cover_a_side_once() -> None:
    spans = cut(50, 16, 4)
    assert [(span.first, span.last) for span in spans] == [(0, 16), (16, 32), (32, 48), (48, 50)]
    assert [(span.start, span.end) for span in spans] == [(0, 20), (12, 36), (28, 50), (44, 50)]


def test_refusals() -> None:
    model, images = network(2), noise(1, 8, 8)
    with pytest.raises(SettingsError, match="upscale.batch_size must be at least 1, found 0"):
        upscale(model, images, batch_size=0)
    with pytest.raises(SettingsError, match="upscale.tile must be at least 1, found 0"):
        upscale(model, images, tile=0)
    with pytest.raises(ValueError, match=r"uint8 \[N, 3, H, W\], found torch.float32"):
        upscale(model, images.float())
