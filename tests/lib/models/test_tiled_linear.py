"""Products by AMX's tiles are those of plain layers and of `DynamicInt8Linear`."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rudalle_lib.models import native
from rudalle_lib.models.dynamic_int8_linear import (
    HIGHEST,
    DynamicInt8Linear,
    with_dynamic_int8_linears,
)
from rudalle_lib.models.tiled_linear import TiledInt8Linear, TiledLinear, can_tile
from tests.lib.models.test_dynamic_int8_linear import stored_layer
from tests.linear_layers import assert_rows_are_alone

pytestmark = pytest.mark.skipif(
    not native.can_multiply_tiles(), reason="this processor has no AMX, or there is no compiler"
)


def rounded(x: Tensor) -> Tensor:
    """As `test_dynamic_int8_linear.rounded`, but for ties: times the inverse of a step."""
    step = x.abs().amax(dim=-1, keepdim=True) / HIGHEST
    return (x.double() * (1 / step).double()).round() * step.double()


@pytest.mark.parametrize("rows", [1, 16, 17, 40, 63, 64, 65, 700])
@pytest.mark.parametrize("inputs", [64, 192, 2048, 8320])
def test_sums_are_those_of_rounded_inputs(inputs: int, rows: int) -> None:
    torch.manual_seed(0)
    layer = stored_layer(inputs, 96)
    x = torch.randn(rows, inputs) * torch.logspace(-4, 4, rows)[:, None]
    sums = rounded(x) @ (layer.weight.double() * layer.scale.double()[:, None]).T
    found = TiledInt8Linear(layer)(x).double() - layer.bias.double()
    assert ((found - sums).abs() <= 1e-5 * sums.abs().amax(-1, keepdim=True) + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    stored = stored_layer(2048, 64)
    stored.bias = nn.Parameter(stored.bias.to(dtype), requires_grad=False)
    x = torch.randn(130, 2048).to(dtype)
    assert_rows_are_alone(TiledInt8Linear(stored), x, (1, 3, 17, 64))


def test_in_bfloat16_it_is_as_close_as_the_other_kernel() -> None:
    torch.manual_seed(0)
    stored, x = stored_layer(256, 64), torch.randn(500, 256)
    exact = rounded(x) @ (stored.weight.double() * stored.scale.double()[:, None]).T + stored.bias
    stored.bias = nn.Parameter(stored.bias.bfloat16(), requires_grad=False)
    off = [
        (kind(stored)(x.bfloat16()) - exact).norm() for kind in (TiledInt8Linear, DynamicInt8Linear)
    ]
    assert off[0] <= off[1] < 0.02 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gelu_is_its_tanh_form(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    stored = stored_layer(64, 32)
    stored.bias = nn.Parameter(stored.bias.to(dtype), requires_grad=False)
    layer, x = TiledInt8Linear(stored), (torch.randn(50, 64) * 20).to(dtype)
    expected = functional.gelu(layer(x).double(), approximate="tanh")
    tolerance = 1e-5 if dtype is torch.float32 else 0.02
    assert ((layer.forward_gelu(x) - expected).abs() <= tolerance * (1 + expected.abs())).all()


def test_a_row_of_zeros_gives_the_bias_and_what_is_not_finite_stays_so() -> None:
    layer = TiledInt8Linear(stored_layer(64, 32))
    assert torch.equal(layer(torch.zeros(2, 3, 64)), layer.bias.expand(2, 3, 32))
    for number in (torch.nan, torch.inf):
        x = torch.ones(2, 64)
        x[0, 3] = number
        found = layer(x)
        assert not found[0].isfinite().any() and found[1].isfinite().all()


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 32, 33, 100, 300])
@pytest.mark.parametrize("inputs", [32, 96, 2048, 2176, 6240])  # in one block of inputs and in more
def test_products_in_bfloat16_are_exact_but_for_rounding(inputs: int, rows: int) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(inputs, 96).bfloat16(), torch.randn(rows, inputs).bfloat16()
    exact = x.double() @ linear.weight.double().T
    off = (exact + linear.bias.double()).abs() * 2.0**-8 + 1e-5
    layer = TiledLinear(linear.weight, linear.bias.detach())
    assert ((layer(x) - exact - linear.bias.double()).abs() <= off).all()
    assert (
        (TiledLinear(linear.weight, None)(x) - exact).abs() <= exact.abs() * 2.0**-8 + 1e-5
    ).all()
    wide = functional.gelu(exact + linear.bias.double(), approximate="tanh")
    assert ((layer.forward_gelu(x) - wide).abs() <= wide.abs() * 2.0**-8 + 1e-5).all()


def test_a_row_in_bfloat16_does_not_depend_on_the_others_in_a_single_bit() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(4096, 64).bfloat16(), torch.randn(2, 150, 4096).bfloat16()
    layer = TiledLinear(linear.weight, linear.bias.detach())
    together = layer(x).flatten(0, 1)
    assert torch.equal(layer(x.flatten(0, 1)), together)
    assert_rows_are_alone(layer, x.flatten(0, 1), (1, 3, 17, 64))
    x[0, 3, 5] = torch.nan
    found = layer(x).flatten(0, 1)
    assert found[3].isnan().all() and torch.equal(found[4:], together[4:])


def test_weights_that_cannot_be_tiled_are_refused() -> None:
    for weight in (
        torch.zeros(48, 64),
        torch.zeros(48, 64).bfloat16(),
        torch.zeros(32, 48).bfloat16(),
    ):
        with pytest.raises(
            ValueError, match=r"a weight \[\d+, \d+\] in torch.\w+ cannot be tiled here"
        ):
            TiledLinear(weight, None)


def test_layers_are_tiled_where_they_fit() -> None:
    module = nn.Sequential(stored_layer(64, 32), nn.Sequential(stored_layer(32, 16)))
    assert can_tile(stored_layer(64, 32).weight) and not can_tile(stored_layer(64, 48).weight)
    with_dynamic_int8_linears(module)
    assert isinstance(module[0], TiledInt8Linear) and isinstance(module[1][0], DynamicInt8Linear)
    assert module(torch.randn(3, 64)).shape == (3, 16)


@pytest.mark.parametrize("x", [torch.zeros(2, 32), torch.zeros(2, 64, dtype=torch.bfloat16)])
def test_what_does_not_fit_is_refused(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected \[..., 64\] in torch.float32, found"):
        TiledInt8Linear(stored_layer(64, 32))(x)
