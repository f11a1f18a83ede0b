"""The demo's picture networks in bfloat16 make the pictures of float32, as far as eyes can tell."""

import pytest
import torch
from torch import Tensor

from rudalle_lib.images import to_uint8
from rudalle_lib.models.precision import in_strips
from rudalle_lib.models.vqgan import AttentionBlock
from rudalle_lib.upscaling import upscale
from rudalle_lib.weights import load_upscaler, load_vqgan

BFLOAT16 = torch.bfloat16


def psnr(found: Tensor, expected: Tensor) -> float:
    """Of pictures uint8, in dB."""
    error = (found.double() - expected.double()).square().mean()
    return float(10 * (255**2 / error).log10())


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Smooth skies and hard edges: uint8 [2, 3, 64, 64]."""
    ramp = torch.linspace(0, 255, 64)
    sky = torch.stack(
        (ramp.expand(64, 64), ramp[:, None].expand(64, 64), ramp.flip(0).expand(64, 64))
    )
    squares = torch.where((sky // 32).sum(0) % 2 == 0, 20.0, 230.0).expand(3, 64, 64)
    return torch.stack((sky, squares)).to(torch.uint8)


@torch.inference_mode()
def test_decoded_pictures_are_at_least_45_db_from_those_of_float32(pictures: Tensor) -> None:
    exact, fast = (load_vqgan("demo-vqgan", dtype=t).model for t in (torch.float32, BFLOAT16))
    tokens = exact.encode(pictures.float() / 127.5 - 1)
    assert torch.equal(fast.encode(pictures.float() / 127.5 - 1), tokens)  # it stays in float32
    made = [to_uint8(model.decode(tokens), -1.0, 1.0) for model in (fast, exact)]
    assert psnr(*made) >= 45


@torch.inference_mode()
def test_enlarged_pictures_are_at_least_45_db_from_those_of_float32(pictures: Tensor) -> None:
    made = [
        upscale(load_upscaler("demo-realesrgan-x2", dtype=dtype).model, pictures)
        for dtype in (BFLOAT16, torch.float32)
    ]
    assert psnr(*made) >= 45


@pytest.mark.parametrize("height", [5, 32, 33, 97])
@torch.inference_mode()
def test_a_convolution_in_strips_gives_the_bits_of_the_whole(height: int) -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(8, 3, 3, padding=1)
    hidden = torch.randn(2, 8, height, 11).to(BFLOAT16)
    assert torch.equal(in_strips(conv, hidden), conv(hidden.float()))
    assert torch.equal(in_strips(conv, hidden.float()), conv(hidden.float()))


@torch.inference_mode()
def test_attention_in_two_products_gives_what_four_give() -> None:
    torch.manual_seed(0)
    block = AttentionBlock(16, norm_groups=4).double()
    features = torch.randn(2, 16, 5, 6, dtype=torch.float64)
    expected = block(features)
    block.fold()
    torch.testing.assert_close(block(features), expected, rtol=0, atol=1e-12)
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in block.modules()) == 2
