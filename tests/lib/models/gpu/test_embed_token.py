"""The start of a step in one kernel equals embeddings and a layer norm of torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rudalle_lib.models.gpu.embed_token import embed_and_normalise
from rudalle_lib.models.layers.triton_int8 import quantise
from rudalle_lib.models.layers.triton_support import RoundedRows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [24, 192, 2048])
@torch.inference_mode()
def test_equals_torch(width: int, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(width)
    embeddings = torch.randn(9, width, device=device).to(dtype)
    positions = torch.randn(6, width, device=device).to(dtype)
    norm = nn.LayerNorm(width, dtype=dtype, device=device)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    latest = torch.tensor([8, 0, 3], device=device)
    place = torch.tensor([5], dtype=torch.int32, device=device)
    hidden, normalised = (torch.empty(3, width, dtype=dtype, device=device) for _ in range(2))
    embed_and_normalise(hidden, latest, embeddings, positions, place, norm, normalised)
    assert torch.equal(hidden, embeddings[latest] + positions[5])
    exact = nn.functional.layer_norm(
        hidden.double(), (width,), norm.weight.double(), norm.bias.double(), norm.eps
    )
    bound = 4e-6 if dtype is torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(normalised.double(), exact, atol=bound, rtol=bound)

    rounded = RoundedRows(*(torch.empty_like(one) for one in quantise(normalised)))
    embed_and_normalise(hidden, latest, embeddings, positions, place, norm, rounded)
    for found, expected in zip(rounded, quantise(normalised), strict=True):
        assert torch.equal(found, expected)
