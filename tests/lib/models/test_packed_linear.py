"""A packed layer gives the products of the plain one."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from rudalle_lib.models.packed_linear import PackedLinear, can_pack, with_packed_linears

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02}


@pytest.mark.parametrize("shape", [(1, 24), (5, 24), (3, 7, 24)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_products_are_those_of_the_plain_layer(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(24, 40).to(dtype), torch.randn(shape).to(dtype)
    if not can_pack(linear.weight):
        assert dtype is torch.bfloat16, "only bfloat16 depends on the processor"
        return
    packed, off = PackedLinear(linear.weight, linear.bias), TOLERANCE[dtype]
    torch.testing.assert_close(packed(x), linear(x), atol=off, rtol=off)
    expected = functional.gelu(linear(x), approximate="tanh")
    torch.testing.assert_close(packed.forward_gelu(x), expected, atol=off, rtol=off)
    without = PackedLinear(linear.weight, None)(x)
    torch.testing.assert_close(without, x @ linear.weight.T, atol=off, rtol=off)


def test_every_linear_layer_below_a_module_is_packed_if_it_can_be() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 4)))
    x = torch.randn(5, 2)
    expected = module(x)
    with_packed_linears(module)
    assert isinstance(module[0], PackedLinear) and isinstance(module[1][1], PackedLinear)
    torch.testing.assert_close(module(x), expected)
    exact = nn.Sequential(nn.Linear(2, 3).double())
    with_packed_linears(exact)
    assert isinstance(exact[0], nn.Linear)


def test_without_the_operators_layers_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    module = nn.Sequential(nn.Linear(2, 3))
    with_packed_linears(module)
    assert isinstance(module[0], nn.Linear)
