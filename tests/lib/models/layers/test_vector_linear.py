"""Linear layers with vectors compute what plain layers compute, for any shape."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rudalle_lib import kernels
from rudalle_lib.models.layers import onednn_linear
from rudalle_lib.models.layers.onednn_linear import fastest_linear
from rudalle_lib.models.layers.vector_linear import (
    VectorInt8Linear,
    VectorLinear,
    can_use_vectors,
)
from tests.support.compiled import needs_kernels
from tests.support.linear_layers import random_int8_linear

pytestmark = needs_kernels


@pytest.mark.parametrize("rows", [1, 5, 6, 7, 13, 240, 241, 500])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (255, 15), (256, 16), (515, 40)])
def test_bfloat16_products_are_exact_up_to_rounding(inputs: int, outputs: int, rows: int) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(inputs, outputs).bfloat16(), torch.randn(rows, inputs).bfloat16()
    exact = x.double() @ linear.weight.double().T
    biased = exact + linear.bias.double()
    layer = VectorLinear(linear.weight, linear.bias.detach())
    assert ((layer(x) - biased).abs() <= biased.abs() * 2.0**-8 + 1e-5).all()
    plain = VectorLinear(linear.weight, None)(x)
    assert ((plain - exact).abs() <= exact.abs() * 2.0**-8 + 1e-5).all()
    wide = functional.gelu(biased, approximate="tanh")
    assert ((layer.forward_gelu(x) - wide).abs() <= wide.abs() * 2.0**-8 + 1e-5).all()


@torch.inference_mode()
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    torch.manual_seed(0)
    before, x = torch.get_num_threads(), torch.randn(300, 300)
    layer = VectorInt8Linear(random_int8_linear(300, 200))
    expected = layer(x)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(layer(x), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("inputs", [1, 7, 64, 1001])
def test_the_largest_8_bit_products_do_not_overflow(inputs: int) -> None:
    """Two products of the largest levels are what saturates in oneDNN without VNNI."""
    layer = random_int8_linear(inputs, 33)
    layer.weight = torch.full_like(layer.weight, -127)
    layer.scale, x = torch.ones_like(layer.scale), torch.full((7, inputs), 126.0)
    x[1::2] *= -1
    expected = x.double() @ layer.weight.double().T + layer.bias
    torch.testing.assert_close(VectorInt8Linear(layer)(x).double(), expected, rtol=1e-6, atol=1e-3)


def test_a_cpu_without_bfloat16_in_onednn_uses_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "has_amx", lambda: False)
    monkeypatch.setattr(
        onednn_linear, "can_use_onednn", lambda weight: weight.dtype is torch.float32
    )
    linear = nn.Linear(32, 16)
    assert not isinstance(fastest_linear(linear.weight, linear.bias), VectorLinear)
    linear.bfloat16()
    assert isinstance(fastest_linear(linear.weight, linear.bias), VectorLinear)
    assert can_use_vectors(linear.weight) and not can_use_vectors(linear.weight.to("meta"))
    monkeypatch.setattr(kernels, "has_vectors", lambda: False)
    assert fastest_linear(linear.weight, linear.bias) is None


@pytest.mark.parametrize("x", [torch.zeros(2, 32), torch.zeros(2, 64)])
def test_inputs_that_do_not_fit_are_rejected(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected \[..., 64\] in torch.bfloat16, found"):
        VectorLinear(torch.zeros(32, 64).bfloat16(), None)(x)
