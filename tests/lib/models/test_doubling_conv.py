"""A doubling convolution gives the same in one step as in two."""

import torch
from torch.nn import functional as F

from rudalle_lib.models.doubling_conv import DoublingConv


@torch.no_grad()
def test_folded_it_gives_what_doubling_and_convolving_give() -> None:
    torch.manual_seed(0)
    conv = DoublingConv(3, 5).double()
    pictures = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    doubled = pictures.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = F.conv2d(doubled, conv.weight, conv.bias, padding=1)
    assert torch.equal(conv(pictures), expected)
    conv.fold()
    assert conv(pictures).shape == (2, 5, 12, 14)
    torch.testing.assert_close(conv(pictures), expected, rtol=0, atol=1e-12)


def test_folding_adds_nothing_to_a_checkpoint() -> None:
    conv = DoublingConv(2, 2)
    conv.fold()
    assert set(conv.state_dict()) == {"weight", "bias"}
