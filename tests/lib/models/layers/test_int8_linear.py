"""A linear layer with 8-bit weights is as close to its original as 8 bits allow."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rudalle_lib.models.layers import int8_linear
from rudalle_lib.models.layers.int8_linear import (
    MAX_LEVEL,
    Int8Linear,
    quantise,
    use_int8_linears,
)
from tests.support.linear_layers import to_int8_linear


def test_rounding_changes_a_weight_by_at_most_half_a_scale() -> None:
    torch.manual_seed(0)
    weight = (
        torch.randn(40, 30) * torch.logspace(-6, 3, 40)[:, None]
    )  # rows of very different magnitudes
    stored, scale = quantise(weight)
    assert (stored.dtype, scale.dtype, stored.shape, scale.shape) == (
        torch.int8, torch.float32, weight.shape, (40,)
    )  # fmt: skip
    error = (stored * scale[:, None] - weight).abs() / scale[:, None]
    assert error.max() <= 0.5001
    assert stored.abs().amax(dim=1).eq(MAX_LEVEL).all()  # every row uses its whole range


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_zeros_stay_zeros_in_every_dtype(dtype: torch.dtype) -> None:
    stored, scale = quantise(torch.zeros(2, 3, dtype=dtype))
    assert not stored.any() and scale.isfinite().all()


@pytest.mark.parametrize("block", [1, 70, 2**22])
def test_the_product_is_that_of_the_dequantised_weights(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(int8_linear, "WEIGHTS_PER_BLOCK", block)
    torch.manual_seed(0)
    linear = nn.Linear(30, 40)
    layer, x = to_int8_linear(linear), torch.randn(2, 5, 30)
    dequantised = layer.weight * layer.scale[:, None]
    expected = nn.functional.linear(x, dequantised, linear.bias)
    assert torch.allclose(layer(x), expected, atol=1e-5)
    assert torch.allclose(layer(x), linear(x), atol=0.03)
    half = layer.bfloat16()
    half.scale = half.scale.float()
    assert half(x.bfloat16()).dtype is torch.bfloat16


def test_every_linear_layer_below_a_module_is_replaced() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 4)))
    names = list(module.state_dict())
    use_int8_linears(module)
    inner = module[1]
    assert isinstance(inner, nn.Sequential)
    assert isinstance(module[0], Int8Linear) and isinstance(inner[1], Int8Linear)
    assert isinstance(inner[0], nn.LayerNorm)
    assert {name for name in module.state_dict() if "scale" not in name} == set(names)
