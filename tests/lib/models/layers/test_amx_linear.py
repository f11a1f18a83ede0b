"""AMX linear layers compute what plain layers and `DynamicInt8Linear` compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rudalle_lib.models.layers.amx_linear import AmxInt8Linear, AmxLinear, can_use_amx
from rudalle_lib.models.layers.int8_dynamic_linear import (
    MAX_LEVEL,
    DynamicInt8Linear,
    use_dynamic_int8_linears,
)
from tests.support.compiled import needs_compiler
from tests.support.linear_layers import assert_batch_invariant, random_int8_linear

pytestmark = [needs_compiler, pytest.mark.usefixtures("amx")]


def quantised(x: Tensor) -> Tensor:
    """Like in `test_int8_dynamic_linear`, but with the inverse step, so that ties differ."""
    step = x.abs().amax(dim=-1, keepdim=True) / MAX_LEVEL
    return (x.double() * (1 / step).double()).round() * step.double()


@pytest.mark.parametrize("rows", [1, 16, 17, 40, 63, 64, 65, 700])
@pytest.mark.parametrize("inputs", [64, 192, 2048, 8320])
def test_int8_products_are_those_of_quantised_inputs(inputs: int, rows: int) -> None:
    torch.manual_seed(0)
    layer = random_int8_linear(inputs, 96)
    x = torch.randn(rows, inputs) * torch.logspace(-4, 4, rows)[:, None]
    sums = quantised(x) @ (layer.weight.double() * layer.scale.double()[:, None]).T
    found = AmxInt8Linear(layer)(x).double() - layer.bias.double()
    assert ((found - sums).abs() <= 1e-5 * sums.abs().amax(-1, keepdim=True) + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_layer_is_batch_invariant(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = AmxInt8Linear(random_int8_linear(2048, 64, dtype))
    assert_batch_invariant(layer, torch.randn(130, 2048).to(dtype), (1, 3, 17, 64))


def test_int8_in_bfloat16_is_as_exact_as_onednn() -> None:
    torch.manual_seed(0)
    stored, x = random_int8_linear(256, 64), torch.randn(500, 256)
    exact = quantised(x) @ (stored.weight.double() * stored.scale.double()[:, None]).T + stored.bias
    stored.bias = nn.Parameter(stored.bias.bfloat16(), requires_grad=False)
    amx_error, onednn_error = (
        (kind(stored)(x.bfloat16()) - exact).norm() for kind in (AmxInt8Linear, DynamicInt8Linear)
    )
    assert amx_error <= onednn_error < 0.02 * exact.norm()


def test_int8_keeps_zero_rows_and_nan_and_infinite_rows() -> None:
    layer = AmxInt8Linear(random_int8_linear(64, 32))
    assert torch.equal(layer(torch.zeros(2, 3, 64)), layer.bias.expand(2, 3, 32))
    for value in (torch.nan, torch.inf):
        x = torch.ones(2, 64)
        x[0, 3] = value
        output = layer(x)
        assert not output[0].isfinite().any() and output[1].isfinite().all()


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 32, 33, 100, 300])
@pytest.mark.parametrize("inputs", [32, 96, 2048, 2176, 6240])  # one block of inputs, and several
def test_bfloat16_products_are_exact_up_to_rounding(inputs: int, rows: int) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(inputs, 96).bfloat16(), torch.randn(rows, inputs).bfloat16()
    exact = x.double() @ linear.weight.double().T
    off = (exact + linear.bias.double()).abs() * 2.0**-8 + 1e-5
    layer = AmxLinear(linear.weight, linear.bias.detach())
    assert ((layer(x) - exact - linear.bias.double()).abs() <= off).all()
    assert ((AmxLinear(linear.weight, None)(x) - exact).abs() <= exact.abs() * 2.0**-8 + 1e-5).all()
    wide = functional.gelu(exact + linear.bias.double(), approximate="tanh")
    assert ((layer.forward_gelu(x) - wide).abs() <= wide.abs() * 2.0**-8 + 1e-5).all()


def test_weights_that_do_not_fit_tiles_are_rejected() -> None:
    for weight in (
        torch.zeros(48, 64),
        torch.zeros(48, 64).bfloat16(),
        torch.zeros(32, 48).bfloat16(),
    ):
        with pytest.raises(
            ValueError, match=r"no AMX layout for a weight \[\d+, \d+\] in torch.\w+ on cpu"
        ):
            AmxLinear(weight, None)


def test_layers_that_fit_tiles_are_replaced() -> None:
    module = nn.Sequential(random_int8_linear(64, 32), nn.Sequential(random_int8_linear(32, 16)))
    assert can_use_amx(random_int8_linear(64, 32).weight) and not can_use_amx(
        random_int8_linear(64, 48).weight
    )
    use_dynamic_int8_linears(module)
    inner = module[1]
    assert isinstance(inner, nn.Sequential)
    assert isinstance(module[0], AmxInt8Linear) and isinstance(inner[0], DynamicInt8Linear)
    assert module(torch.randn(3, 64)).shape == (3, 16)


@pytest.mark.parametrize("x", [torch.zeros(2, 32), torch.zeros(2, 64, dtype=torch.bfloat16)])
def test_inputs_that_do_not_fit_are_rejected(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected \[..., 64\] in torch.float32, found"):
        AmxInt8Linear(random_int8_linear(64, 32))(x)
