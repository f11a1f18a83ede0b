"""The blocks of the VQ-GAN: formulas, shapes, and the folded attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rudalle_lib.models.vqgan_blocks import AttentionBlock, Downsample, ResidualBlock


@torch.inference_mode()
def test_folded_attention_matches_the_original() -> None:
    torch.manual_seed(0)
    block = AttentionBlock(16, norm_groups=4).double()
    features = torch.randn(2, 16, 5, 6, dtype=torch.float64)
    expected = block(features)
    block.fold()
    torch.testing.assert_close(block(features), expected, rtol=0, atol=1e-12)
    assert sum(isinstance(layer, nn.Conv2d) for layer in block.modules()) == 2


@torch.inference_mode()
def test_attention_is_a_softmax_over_all_positions() -> None:
    torch.manual_seed(0)
    block = AttentionBlock(8, norm_groups=2).double()
    x = torch.randn(1, 8, 3, 4, dtype=torch.float64)
    q, k, v = (conv(block.norm(x)).flatten(2)[0] for conv in (block.q, block.k, block.v))
    weights = (q.T @ k / 8**0.5).softmax(dim=1)  # [positions, positions]
    attended = (v @ weights.T).view(1, 8, 3, 4)
    torch.testing.assert_close(block(x), x + block.proj_out(attended), rtol=0, atol=1e-12)


@pytest.mark.parametrize("width_out", [8, 12])
@torch.inference_mode()
def test_residual_blocks_add_two_convolutions_to_their_input(width_out: int) -> None:
    torch.manual_seed(0)
    block = ResidualBlock(8, width_out, norm_groups=4)
    assert isinstance(block.nin_shortcut, nn.Identity) is (width_out == 8)
    x = torch.randn(2, 8, 5, 6)
    kept = x.clone()
    hidden = block.conv1(F.silu(block.norm1(x)))
    expected = block.nin_shortcut(x) + block.conv2(F.silu(block.norm2(hidden)))
    torch.testing.assert_close(block(x), expected)
    assert torch.equal(x, kept), "the in-place activations must not change the input"


def test_downsampling_pads_at_the_bottom_and_right() -> None:
    layer = Downsample(1)
    nn.init.zeros_(layer.conv.weight)
    assert layer.conv.bias is not None
    nn.init.zeros_(layer.conv.bias)
    with torch.no_grad():
        layer.conv.weight[0, 0, 0, 0] = 1.0  # selects the top left pixel under the kernel
    x = torch.arange(24.0).view(1, 1, 4, 6)
    assert torch.equal(layer(x), x[:, :, ::2, ::2])
