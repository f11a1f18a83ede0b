"""Linear layers for tests and benchmarks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rudalle_lib.models.int8_linear import Int8Linear, quantise


def in_8_bits(layer: nn.Linear) -> Int8Linear:
    """The same layer with an 8-bit weight."""
    stored = Int8Linear(layer.in_features, layer.out_features)
    stored.weight, stored.scale = quantise(layer.weight.detach())
    stored.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return stored


def assert_rows_are_alone(layer: nn.Module, x: Tensor, sizes: Sequence[int]) -> None:
    """Rows of x, [N, inputs], give the same to the last bit in parts of these sizes."""
    together = layer(x)
    for size in sizes:
        assert torch.equal(torch.cat([layer(part) for part in x.split(size)]), together)
