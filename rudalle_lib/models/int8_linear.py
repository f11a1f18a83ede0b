"""A linear layer with 8-bit weights: half of bfloat16's memory, the precision of the input.

Weight-only, symmetric, one scale an output channel: `weight = int8 * scale`. Source: the form is
that of gpt-fast's `WeightOnlyInt8Linear`; see Dettmers et al., arXiv:2208.07339, on why outputs
get a scale each. Rounding moves a weight by at most half a scale, 1/254 of its row's largest.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rudalle_lib.models.replacing import replace_layers

LARGEST = 127
BLOCK = 2**22
"""Weights that are widened at once on a CPU: they stay in its cache, in 8 MB as bfloat16."""


class Int8Linear(nn.Module):
    """As `nn.Linear`; `weight` int8 [outputs, inputs], `scale` float32 [outputs]."""

    weight: Tensor
    scale: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(outputs, inputs, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs], in the dtype of x."""
        rows = len(self.weight) if x.is_cuda else max(1, BLOCK // self.weight.shape[1])
        blocks = [functional.linear(x, part.to(x.dtype)) for part in self.weight.split(rows)]
        product = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=-1)
        return product * self.scale.to(x.dtype) + self.bias


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Float [outputs, inputs] to int8 of the same shape and its scales, float32 [outputs]."""
    largest = weight.abs().amax(dim=1).float()
    scale = torch.where(largest > 0, largest, 1.0) / LARGEST
    quantised = (weight.float() / scale[:, None]).round_()
    return quantised.clamp_(-LARGEST, LARGEST).to(torch.int8), scale


def with_int8_linears(module: nn.Module) -> None:
    """Put an `Int8Linear` without values in the place of every linear layer below a module."""
    replace_layers(
        module, nn.Linear, lambda layer: Int8Linear(layer.in_features, layer.out_features)
    )
