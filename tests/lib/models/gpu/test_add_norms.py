"""The end of a branch in one kernel equals layer norms in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rudalle_lib.models.gpu.add_norms import add_and_normalise
from rudalle_lib.models.layers.triton_int8 import quantise
from rudalle_lib.models.layers.triton_support import RoundedRows


def random_norm(width: int, dtype: torch.dtype, device: torch.device) -> nn.LayerNorm:
    norm = nn.LayerNorm(width, eps=1e-5, dtype=dtype, device=device)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def in_float64(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    assert norm.weight is not None
    weight, bias = norm.weight.double(), norm.bias.double()
    return functional.layer_norm(x.double(), norm.normalized_shape, weight, bias, norm.eps)


@pytest.mark.parametrize("sandwich", [True, False])
@pytest.mark.parametrize("width", [24, 192, 2048, 3840])
@torch.inference_mode()
def test_equals_float64(width: int, sandwich: bool, device: torch.device) -> None:
    torch.manual_seed(width)
    hidden, branch = (torch.randn(5, width, device=device) * 3 + 1 for _ in range(2))
    norm, following = (random_norm(width, torch.float32, device) for _ in range(2))
    normalised = torch.empty_like(hidden)
    expected = hidden + (in_float64(norm, branch) if sandwich else branch)
    first = norm if sandwich else nn.Identity()
    add_and_normalise(hidden, branch, first, following, normalised)
    torch.testing.assert_close(hidden.double(), expected.double(), atol=2e-6, rtol=2e-6)
    found = in_float64(following, expected)
    torch.testing.assert_close(normalised.double(), found, atol=4e-6, rtol=4e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_lower_precisions_round_only_results(dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(0)
    hidden, branch = (torch.randn(4, 256, device=device).to(dtype) for _ in range(2))
    norm, following = (random_norm(256, dtype, device) for _ in range(2))
    normalised = torch.empty_like(hidden)
    expected = hidden.double() + in_float64(norm, branch)
    add_and_normalise(hidden, branch, norm, following, normalised)
    step = torch.finfo(dtype).eps / 2
    error = (hidden.double() - expected).abs()
    assert (error <= step * 1.01 * expected.abs().clamp(min=1e-3)).all()
    error = (normalised.double() - in_float64(following, hidden)).abs()
    assert (error <= step * 1.01 * in_float64(following, hidden).abs() + 1e-5).all()


@torch.inference_mode()
def test_infinite_branches_of_float16_are_limited(device: torch.device) -> None:
    """As in `SelfAttention`: the sum of the product was too large, its norm is not."""
    branch = torch.zeros(1, 32, dtype=torch.float16, device=device)
    branch[0, 3] = torch.inf
    norm = nn.LayerNorm(32, dtype=torch.float16, device=device)
    hidden, normalised = torch.zeros_like(branch), torch.empty_like(branch)
    add_and_normalise(hidden, branch, norm, norm, normalised)
    limited = in_float64(norm, branch.clamp(-65504, 65504))
    torch.testing.assert_close(hidden.double(), limited, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_rows_in_8_bits_are_rounded_from_what_would_have_been_written(
    dtype: torch.dtype, device: torch.device
) -> None:
    torch.manual_seed(0)
    hidden, branch = (torch.randn(4, 192, device=device).to(dtype) for _ in range(2))
    hidden[1, 7], again = torch.nan, hidden.clone()
    again[1, 7] = torch.nan
    norm, following = (random_norm(192, dtype, device) for _ in range(2))
    normalised = torch.empty_like(hidden)
    add_and_normalise(hidden, branch, norm, following, normalised)
    expected = quantise(normalised)
    found = RoundedRows(*(torch.empty_like(one) for one in expected))
    add_and_normalise(again, branch, norm, following, found)
    assert torch.equal(again.nan_to_num(), hidden.nan_to_num())
    assert torch.equal(found.step, expected.step) and found.step[1] == torch.inf
    finite = [0, 2, 3]
    assert torch.equal(found.levels[finite], expected.levels[finite])
