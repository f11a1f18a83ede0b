"""Group norm and SiLU in channels-last layout equal PyTorch's in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rudalle_lib.models.layers.group_norm_kernels import normalise_channels_last


def random_norm(groups: int, channels: int, device: torch.device) -> nn.GroupNorm:
    norm = nn.GroupNorm(groups, channels, eps=1e-6, device=device)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def in_float64(norm: nn.GroupNorm, x: Tensor, activate: bool) -> Tensor:
    weight, bias = norm.weight.double(), norm.bias.double()
    normalised = functional.group_norm(x.double(), norm.num_groups, weight, bias, norm.eps)
    return functional.silu(normalised) if activate else normalised


@pytest.mark.parametrize("activate", [True, False])
@pytest.mark.parametrize(
    ("groups", "channels", "height", "width"),
    [(32, 128, 16, 16), (32, 512, 8, 24), (4, 8, 7, 5), (32, 256, 1, 1)],
)
@torch.inference_mode()
def test_equals_float64(
    groups: int, channels: int, height: int, width: int, activate: bool, device: torch.device
) -> None:
    torch.manual_seed(channels)
    norm = random_norm(groups, channels, device)
    x = torch.randn(3, channels, height, width, device=device) * 2 + 5  # a mean far from 0
    x = x.contiguous(memory_format=torch.channels_last)
    found = normalise_channels_last(norm, x, activate)
    assert found.is_contiguous(memory_format=torch.channels_last)
    expected = in_float64(norm, x, activate)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-5)


@torch.inference_mode()
def test_an_image_does_not_depend_on_its_batch(device: torch.device) -> None:
    norm = random_norm(8, 16, device)
    x = torch.randn(4, 16, 8, 8, device=device).contiguous(memory_format=torch.channels_last)
    together = normalise_channels_last(norm, x, True)
    for index in range(4):
        alone = normalise_channels_last(norm, x[index : index + 1], True)
        assert torch.equal(alone[0], together[index])


@torch.inference_mode()
def test_bfloat16_is_rounded_once(device: torch.device) -> None:
    norm = random_norm(8, 16, device).to(torch.bfloat16)
    x = torch.randn(2, 16, 8, 8, device=device).to(torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)
    found, expected = normalise_channels_last(norm, x, False), in_float64(norm, x, False)
    step = torch.finfo(torch.bfloat16).eps * (0.5 if device.type == "cuda" else 1.0)
    assert ((found.double() - expected).abs() <= step * 1.01 * expected.abs() + 1e-5).all()
