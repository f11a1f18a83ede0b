"""The dynamic 8-bit layer computes the products of quantised inputs and weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rudalle_lib.models.layers import int8_dynamic_linear
from rudalle_lib.models.layers.int8_dynamic_linear import (
    MAX_LEVEL,
    DynamicInt8Linear,
    has_vnni,
    use_dynamic_int8_linears,
)
from rudalle_lib.models.layers.vector_linear import VectorInt8Linear
from tests.support.compiled import needs_kernels
from tests.support.linear_layers import assert_batch_invariant, random_int8_linear

KINDS = [VectorInt8Linear, *([DynamicInt8Linear] if has_vnni() else [])]
"""The layers that this machine can run: oneDNN's needs VNNI, the other one runs everywhere."""

pytestmark = [needs_kernels, pytest.mark.parametrize("kind", KINDS)]


Kind = type[VectorInt8Linear] | type[DynamicInt8Linear]


def quantised(x: Tensor, kind: Kind) -> Tensor:
    """Round each row of x to its own 253 levels, float64; one layer multiplies by 1 / step."""
    step = x.abs().amax(dim=-1, keepdim=True) / MAX_LEVEL
    if kind is VectorInt8Linear:
        return (x.double() * (1 / step).double()).round() * step.double()
    step = x.double().abs().amax(dim=-1, keepdim=True) / MAX_LEVEL
    return (x.double() / step).round() * step


@pytest.mark.parametrize("shape", [(1, 24), (5, 24), (3, 7, 24), (130, 2048)])
def test_products_are_those_of_quantised_inputs(kind: Kind, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = random_int8_linear(shape[-1], 40)
    x = torch.randn(shape) * torch.logspace(-4, 4, shape[-2])[:, None]
    weight = layer.weight.double() * layer.scale.double()[:, None]
    sums = quantised(x, kind) @ weight.T
    found = kind(layer)(x).double() - layer.bias.double()
    assert ((found - sums).abs() <= 1e-5 * sums.abs().amax(-1, keepdim=True) + 1e-6).all()


def test_every_row_in_bfloat16_is_close_to_float32(kind: Kind) -> None:
    """Includes rows whose largest value bfloat16 rounds up: many of 5,000."""
    torch.manual_seed(0)
    layer, x = random_int8_linear(32, 64), torch.randn(5000, 32)
    expected = kind(layer)(x) - layer.bias
    layer.bias = nn.Parameter(torch.zeros(64, dtype=torch.bfloat16), requires_grad=False)
    found = DynamicInt8Linear(layer)(x.bfloat16())
    assert found.dtype is torch.bfloat16
    error = (found.float() - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < 0.04 and error.mean() < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_is_batch_invariant(kind: Kind, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = kind(random_int8_linear(2048, 64, dtype))
    x = torch.randn(64, 2048).to(dtype)
    x[1] *= 1000  # would coarsen the steps of all rows if they were shared
    assert_batch_invariant(layer, x, (1, 3, 8))


def test_a_row_of_zeros_gives_the_bias(kind: Kind) -> None:
    layer = random_int8_linear(24, 40)
    assert torch.equal(kind(layer)(torch.zeros(2, 24)), layer.bias.expand(2, 40))


def test_nan_and_infinite_rows_stay_so(kind: Kind) -> None:
    """A damaged network must not draw as if it were intact."""
    layer = kind(random_int8_linear(24, 40))
    for value in (torch.nan, torch.inf):
        x = torch.ones(2, 24)
        x[0, 3] = value
        found = layer(x)
        assert not found[0].isfinite().any() and found[1].isfinite().all()


def test_every_int8_layer_below_a_module_is_replaced(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        int8_dynamic_linear, "has_vnni", lambda: issubclass(kind, DynamicInt8Linear)
    )
    module = nn.Sequential(
        random_int8_linear(8, 16), nn.Sequential(nn.LayerNorm(16), random_int8_linear(16, 4))
    )
    use_dynamic_int8_linears(module)
    inner = module[1]
    assert isinstance(inner, nn.Sequential)
    assert isinstance(module[0], kind) and isinstance(inner[1], kind)
    assert module(torch.randn(3, 8)).shape == (3, 4)


def test_without_8_bit_products_layers_keep_8_bit_weights(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_dynamic_linear, "has_vnni", lambda: False)
    monkeypatch.setattr(int8_dynamic_linear, "can_use_vectors", lambda _: False)
    layer = random_int8_linear(8, 16)
    assert int8_dynamic_linear.fastest_int8_linear(layer) is layer
