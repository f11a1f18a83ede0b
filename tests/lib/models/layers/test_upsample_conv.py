"""An upsampling convolution computes the same in one step as in two."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from rudalle_lib.models.layers.upsample_conv import UpsampleConv


@torch.no_grad()
def test_folded_layer_matches_upsampling_and_convolution() -> None:
    torch.manual_seed(0)
    conv = UpsampleConv(3, 5).double()
    images = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    upsampled = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = F.conv2d(upsampled, conv.weight, conv.bias, padding=1)
    assert torch.equal(conv(images), expected)
    conv.fold()
    assert conv(images).shape == (2, 5, 12, 14)
    torch.testing.assert_close(conv(images), expected, rtol=0, atol=1e-12)


def test_folding_does_not_change_the_state_dict_keys() -> None:
    conv = UpsampleConv(2, 2)
    conv.fold()
    assert set(conv.state_dict()) == {"weight", "bias"}
