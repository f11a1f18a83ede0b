"""A layer that multiplies 8-bit integers gives the sums of its rounded inputs and weights."""

import pytest
import torch
from torch import Tensor, nn

from rudalle_lib.devices import can_multiply_int8
from rudalle_lib.models.dynamic_int8_linear import (
    HIGHEST,
    DynamicInt8Linear,
    with_dynamic_int8_linears,
)
from rudalle_lib.models.int8_linear import Int8Linear, quantise
from tests.linear_layers import assert_rows_are_alone

pytestmark = pytest.mark.skipif(not can_multiply_int8(), reason="this processor has no VNNI")


def stored_layer(inputs: int, outputs: int) -> Int8Linear:
    layer = Int8Linear(inputs, outputs)
    layer.weight, layer.scale = quantise(torch.randn(outputs, inputs) * 0.1)
    layer.bias = nn.Parameter(torch.randn(outputs), requires_grad=False)
    return layer


def rounded(x: Tensor) -> Tensor:
    """Rows of x in 253 levels of their own, float64."""
    step = x.double().abs().amax(dim=-1, keepdim=True) / HIGHEST
    return (x.double() / step).round() * step


@pytest.mark.parametrize("shape", [(1, 24), (5, 24), (3, 7, 24), (130, 2048)])
def test_sums_are_those_of_rounded_inputs(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer, x = (
        stored_layer(shape[-1], 40),
        torch.randn(shape) * torch.logspace(-4, 4, shape[-2])[:, None],
    )
    weight = layer.weight.double() * layer.scale.double()[:, None]
    sums = rounded(x) @ weight.T
    found = DynamicInt8Linear(layer)(x).double() - layer.bias.double()
    assert ((found - sums).abs() <= 1e-5 * sums.abs().amax(-1, keepdim=True) + 1e-6).all()


def test_in_bfloat16_every_row_is_nearly_as_close() -> None:
    """Also a row whose largest number bfloat16 rounds up: of 5,000, many."""
    torch.manual_seed(0)
    layer, x = stored_layer(32, 64), torch.randn(5000, 32)
    expected = DynamicInt8Linear(layer)(x) - layer.bias
    layer.bias = nn.Parameter(torch.zeros(64, dtype=torch.bfloat16), requires_grad=False)
    found = DynamicInt8Linear(layer)(x.bfloat16())
    assert found.dtype is torch.bfloat16
    off = (found.float() - expected).norm(dim=1) / expected.norm(dim=1)
    assert off.max() < 0.04 and off.mean() < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    stored = stored_layer(2048, 64)
    stored.bias = nn.Parameter(stored.bias.to(dtype), requires_grad=False)
    layer, x = DynamicInt8Linear(stored), torch.randn(64, 2048).to(dtype)
    x[1] *= 1000  # would take all levels, were they shared
    assert_rows_are_alone(layer, x, (1, 3, 8))


def test_a_row_of_zeros_gives_the_bias() -> None:
    layer = stored_layer(24, 40)
    assert torch.equal(DynamicInt8Linear(layer)(torch.zeros(2, 24)), layer.bias.expand(2, 40))


def test_what_is_not_finite_stays_so() -> None:
    """A damaged network must not draw as if it were whole."""
    layer = DynamicInt8Linear(stored_layer(24, 40))
    for number in (torch.nan, torch.inf):
        x = torch.ones(2, 24)
        x[0, 3] = number
        found = layer(x)
        assert not found[0].isfinite().any() and found[1].isfinite().all()


def test_every_stored_layer_below_a_module_is_replaced() -> None:
    module = nn.Sequential(
        stored_layer(8, 16), nn.Sequential(nn.LayerNorm(16), stored_layer(16, 4))
    )
    with_dynamic_int8_linears(module)
    assert isinstance(module[0], DynamicInt8Linear) and isinstance(module[1][1], DynamicInt8Linear)
    assert module(torch.randn(3, 8)).shape == (3, 4)
