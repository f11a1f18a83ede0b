"""Compiled layer norms give what torch's give, and add in the same pass."""

import pytest
import torch
from torch import nn

from rudalle_lib.models.compiled_layer_norm import CompiledLayerNorm, with_compiled_norms
from tests.lib.models.test_cell_attention import needs_compiler

pytestmark = needs_compiler
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-5, torch.bfloat16: 0.04}


def norm_of(width: int, dtype: torch.dtype = torch.float32) -> nn.LayerNorm:
    norm = nn.LayerNorm(width, eps=1e-5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm.to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(32,), (1, 64), (3, 5, 2048)])
@torch.inference_mode()
def test_it_gives_what_torch_gives(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = norm_of(shape[-1], dtype)
    x = (torch.randn(shape) * 3 + 100).to(dtype)  # a mean that is large beside the deviation
    added = torch.randn(shape).to(dtype)
    exact = norm.double()(x.double())
    compiled = CompiledLayerNorm(norm.to(dtype))
    assert (compiled(x) - exact).abs().max() < TOLERANCE[dtype]
    assert (compiled(x, added) - (exact + added)).abs().max() < TOLERANCE[dtype]
    assert compiled(x).shape == shape and compiled(x).dtype is dtype


def test_norms_below_a_module_are_replaced_where_they_fit() -> None:
    module = nn.Sequential(norm_of(64), nn.Sequential(norm_of(48), norm_of(32)))
    with_compiled_norms(module)
    kinds = [type(module[0]), type(module[1][0]), type(module[1][1])]
    assert kinds == [CompiledLayerNorm, nn.LayerNorm, CompiledLayerNorm]


@pytest.mark.parametrize("x", [torch.zeros(2, 64), torch.zeros(2, 32, dtype=torch.bfloat16)])
def test_what_does_not_fit_is_refused(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected \[..., 32\] in torch.float32, found"):
        CompiledLayerNorm(norm_of(32))(x)
