"""The demo's image networks in bfloat16 produce nearly the images of float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rudalle_lib.images.codecs import to_uint8
from rudalle_lib.images.upscaling import upscale
from rudalle_lib.models.layers.mixed_precision import conv_in_strips
from rudalle_lib.weights.loading import load_upscaler, load_vqgan

BFLOAT16 = torch.bfloat16


def psnr(found: Tensor, expected: Tensor) -> float:
    """Peak signal-to-noise ratio of uint8 images in dB."""
    error = (found.double() - expected.double()).square().mean()
    return float(10 * (255**2 / error).log10())


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Smooth gradients and hard edges: uint8 [2, 3, 64, 64]."""
    ramp = torch.linspace(0, 255, 64)
    gradients = torch.stack(
        (ramp.expand(64, 64), ramp[:, None].expand(64, 64), ramp.flip(0).expand(64, 64))
    )
    squares = torch.where((gradients // 32).sum(0) % 2 == 0, 20.0, 230.0).expand(3, 64, 64)
    return torch.stack((gradients, squares)).to(torch.uint8)


@torch.inference_mode()
def test_decoded_images_have_at_least_45_db_psnr_to_float32(images: Tensor) -> None:
    exact, fast = (load_vqgan("demo-vqgan", dtype=t).model for t in (torch.float32, BFLOAT16))
    tokens = exact.encode(images.float() / 127.5 - 1)
    assert torch.equal(
        fast.encode(images.float() / 127.5 - 1), tokens
    )  # the encoder stays in float32
    found, expected = (to_uint8(model.decode(tokens), -1.0, 1.0) for model in (fast, exact))
    assert psnr(found, expected) >= 45


@torch.inference_mode()
def test_upscaled_images_have_at_least_45_db_psnr_to_float32(images: Tensor) -> None:
    found, expected = (
        upscale(load_upscaler("demo-realesrgan-x2", dtype=dtype).model, images)
        for dtype in (BFLOAT16, torch.float32)
    )
    assert psnr(found, expected) >= 45


@pytest.mark.parametrize("height", [5, 32, 33, 97])
@torch.inference_mode()
def test_convolution_in_strips_has_the_bits_of_the_whole(height: int) -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(8, 3, 3, padding=1)
    hidden = torch.randn(2, 8, height, 11).to(BFLOAT16)
    assert torch.equal(conv_in_strips(conv, hidden), conv(hidden.float()))
    assert torch.equal(conv_in_strips(conv, hidden.float()), conv(hidden.float()))
