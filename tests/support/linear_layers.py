"""Linear layers for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rudalle_lib.models.layers.int8_linear import Int8Linear, quantise


def to_int8_linear(layer: nn.Linear) -> Int8Linear:
    """Quantise a linear layer."""
    quantised = Int8Linear(layer.in_features, layer.out_features)
    quantised.weight, quantised.scale = quantise(layer.weight.detach())
    quantised.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return quantised


def random_int8_linear(inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> Int8Linear:
    """Build a quantised layer with random weights and a random bias in a dtype."""
    layer = Int8Linear(inputs, outputs)
    layer.weight, layer.scale = quantise(torch.randn(outputs, inputs) * 0.1)
    layer.bias = nn.Parameter(torch.randn(outputs).to(dtype), requires_grad=False)
    return layer


def assert_batch_invariant(layer: nn.Module, x: Tensor, sizes: Sequence[int]) -> None:
    """Assert that x [N, inputs] gives the same bits in batches of each of these sizes."""
    expected = layer(x)
    for size in sizes:
        assert torch.equal(torch.cat([layer(part) for part in x.split(size)]), expected)
