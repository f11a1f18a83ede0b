"""A linear layer in 8 bits is as close to its float original as 8 bits can be."""

import pytest
import torch
from torch import nn

from rudalle_lib.models import int8_linear
from rudalle_lib.models.int8_linear import LARGEST, Int8Linear, quantise, with_int8_linears


def quantised(linear: nn.Linear) -> Int8Linear:
    layer = Int8Linear(linear.in_features, linear.out_features)
    layer.weight, layer.scale = quantise(linear.weight.detach())
    layer.bias = linear.bias
    return layer


def test_no_weight_is_off_by_more_than_half_a_step() -> None:
    torch.manual_seed(0)
    weight = torch.randn(40, 30) * torch.logspace(-6, 3, 40)[:, None]  # rows of very unlike sizes
    stored, scale = quantise(weight)
    assert (stored.dtype, scale.dtype, stored.shape, scale.shape) == (
        torch.int8, torch.float32, weight.shape, (40,)
    )  # fmt: skip
    off = (stored * scale[:, None] - weight).abs() / scale[:, None]
    assert off.max() <= 0.5001
    assert stored.abs().amax(dim=1).eq(LARGEST).all()  # every row uses its whole range


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_zeros_stay_zeros_in_every_precision(dtype: torch.dtype) -> None:
    stored, scale = quantise(torch.zeros(2, 3, dtype=dtype))
    assert not stored.any() and scale.isfinite().all()


@pytest.mark.parametrize("block", [1, 70, 2**22])
def test_the_product_is_that_of_the_widened_weights(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(int8_linear, "BLOCK", block)
    torch.manual_seed(0)
    linear = nn.Linear(30, 40)
    layer, x = quantised(linear), torch.randn(2, 5, 30)
    widened = layer.weight * layer.scale[:, None]
    expected = nn.functional.linear(x, widened, linear.bias)
    assert torch.allclose(layer(x), expected, atol=1e-5)
    assert torch.allclose(layer(x), linear(x), atol=0.03)
    half = layer.bfloat16()
    half.scale = half.scale.float()
    assert half(x.bfloat16()).dtype is torch.bfloat16


def test_every_linear_layer_below_a_module_is_replaced() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 4)))
    names = list(module.state_dict())
    with_int8_linears(module)
    assert isinstance(module[0], Int8Linear) and isinstance(module[1][1], Int8Linear)
    assert isinstance(module[1][0], nn.LayerNorm)
    assert {name for name in module.state_dict() if "scale" not in name} == set(names)
