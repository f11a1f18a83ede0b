"""A oneDNN layer computes what the plain layer computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from rudalle_lib.models.layers.onednn_linear import (
    OnednnLinear,
    can_use_onednn,
    use_fastest_linears,
)

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02}


@pytest.mark.parametrize("shape", [(1, 24), (5, 24), (3, 7, 24)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_products_match_the_plain_layer(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(24, 40).to(dtype), torch.randn(shape).to(dtype)
    if not can_use_onednn(linear.weight):
        assert dtype is torch.bfloat16, "only bfloat16 depends on the CPU"
        return
    layer, tolerance = OnednnLinear(linear.weight, linear.bias), TOLERANCE[dtype]
    torch.testing.assert_close(layer(x), linear(x), atol=tolerance, rtol=tolerance)
    expected = functional.gelu(linear(x), approximate="tanh")
    torch.testing.assert_close(layer.forward_gelu(x), expected, atol=tolerance, rtol=tolerance)
    without = OnednnLinear(linear.weight, None)(x)
    torch.testing.assert_close(without, x @ linear.weight.T, atol=tolerance, rtol=tolerance)


def test_every_linear_layer_below_a_module_is_replaced_if_it_fits() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 4)))
    x = torch.randn(5, 2)
    expected = module(x)
    use_fastest_linears(module)
    inner = module[1]
    assert isinstance(inner, nn.Sequential)
    assert isinstance(module[0], OnednnLinear) and isinstance(inner[1], OnednnLinear)
    torch.testing.assert_close(module(x), expected)
    exact = nn.Sequential(nn.Linear(2, 3).double())
    use_fastest_linears(exact)
    assert isinstance(exact[0], nn.Linear)


def test_without_onednn_layers_are_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    module = nn.Sequential(nn.Linear(2, 3))
    use_fastest_linears(module)
    assert isinstance(module[0], nn.Linear)
