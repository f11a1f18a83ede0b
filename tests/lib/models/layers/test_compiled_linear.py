"""What both kinds of compiled linear layers promise: AMX tiles and vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional

from rudalle_lib.models.layers.amx_linear import AmxInt8Linear, AmxLinear
from rudalle_lib.models.layers.vector_linear import VectorInt8Linear, VectorLinear
from tests.support.compiled import AMX, amx_by, needs_compiler, needs_kernels
from tests.support.linear_layers import assert_batch_invariant, random_int8_linear


class Kind(NamedTuple):
    """The layers of a kind for weights in bfloat16 and in 8 bits, and inputs and outputs of one."""

    bfloat16: type[AmxLinear] | type[VectorLinear]
    int8: type[AmxInt8Linear] | type[VectorInt8Linear]
    size: tuple[int, int]


@pytest.fixture(
    params=[
        pytest.param("vectors", marks=needs_kernels),
        *(pytest.param(f"amx {how}", marks=needs_compiler) for how in AMX),
    ]
)
def kind(request: pytest.FixtureRequest) -> Iterator[Kind]:
    """Layers with vectors, and with AMX in each way in which this machine gets it."""
    if request.param == "vectors":
        yield Kind(VectorLinear, VectorInt8Linear, (600, 48))
        return
    with amx_by(request.param.removeprefix("amx ")):
        yield Kind(AmxLinear, AmxInt8Linear, (4096, 64))


@torch.inference_mode()
def test_bfloat16_is_batch_invariant_and_keeps_nan(kind: Kind) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(*kind.size).bfloat16()
    x = torch.randn(2, 150, kind.size[0]).bfloat16()
    layer = kind.bfloat16(linear.weight, linear.bias.detach())
    expected = layer(x).flatten(0, 1)
    assert torch.equal(layer(x.flatten(0, 1)), expected)
    assert_batch_invariant(layer, x.flatten(0, 1), (1, 3, 17, 64))
    x[0, 3, 5] = torch.nan
    output = layer(x).flatten(0, 1)
    assert output[3].isnan().all() and torch.equal(output[4:], expected[4:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_gelu_is_the_tanh_form(kind: Kind, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = kind.int8(random_int8_linear(64, 32, dtype))
    x = (torch.randn(50, 64) * 20).to(dtype)
    expected = functional.gelu(layer(x).double(), approximate="tanh")
    tolerance = 1e-5 if dtype is torch.float32 else 0.02
    assert ((layer.forward_gelu(x) - expected).abs() <= tolerance * (1 + expected.abs())).all()
