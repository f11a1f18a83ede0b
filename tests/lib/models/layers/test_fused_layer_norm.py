"""Fused layer norms compute what torch computes, including the addition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rudalle_lib.models.layers.fused_layer_norm import FusedLayerNorm, use_fused_layer_norms
from tests.support.compiled import needs_kernels

pytestmark = needs_kernels
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-5, torch.bfloat16: 0.04}


def norm_of(width: int, dtype: torch.dtype = torch.float32) -> nn.LayerNorm:
    norm = nn.LayerNorm(width, eps=1e-5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm.to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(32,), (1, 64), (3, 5, 2048)])
@torch.inference_mode()
def test_norms_match_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = norm_of(shape[-1], dtype)
    x = (torch.randn(shape) * 3 + 100).to(dtype)  # a mean much larger than the deviation
    added = torch.randn(shape).to(dtype)
    exact = norm.double()(x.double())
    fused = FusedLayerNorm(norm.to(dtype))
    assert (fused(x) - exact).abs().max() < TOLERANCE[dtype]
    assert (fused(x, added) - (exact + added)).abs().max() < TOLERANCE[dtype]
    assert fused(x).shape == shape and fused(x).dtype is dtype


def test_norms_below_a_module_are_replaced_if_they_fit() -> None:
    module = nn.Sequential(norm_of(64), nn.Sequential(norm_of(48), norm_of(32)))
    use_fused_layer_norms(module)
    inner = module[1]
    assert isinstance(inner, nn.Sequential)
    kinds = [type(module[0]), type(inner[0]), type(inner[1])]
    assert kinds == [FusedLayerNorm, nn.LayerNorm, FusedLayerNorm]


@pytest.mark.parametrize("x", [torch.zeros(2, 64), torch.zeros(2, 32, dtype=torch.bfloat16)])
def test_inputs_that_do_not_fit_are_rejected(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected \[..., 32\] in torch.float32, found"):
        FusedLayerNorm(norm_of(32))(x)
