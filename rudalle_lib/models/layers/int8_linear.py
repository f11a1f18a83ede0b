"""A linear layer with 8-bit weights: half the memory of bfloat16, computed in the input's dtype.

Weight-only symmetric quantisation with one scale per output channel: `weight = int8 * scale`.
Rounding changes a weight by at most half a scale, 1/254 of the largest weight in its row.

Source: `WeightOnlyInt8Linear` of gpt-fast; Dettmers et al., arXiv:2208.07339, on why each output
channel needs its own scale.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rudalle_lib.models.layers.replace import replace_layers
from rudalle_lib.models.layers.triton_support import can_launch

MAX_LEVEL = 127
"""Largest absolute value of a quantised weight."""

WEIGHTS_PER_BLOCK = 2**22
"""Weights that are converted together: as bfloat16, 8 MB, they stay in the cache of a CPU."""


class Int8Linear(nn.Module):
    """`nn.Linear` with `weight` int8 [outputs, inputs] and `scale` float32 [outputs]."""

    weight: Tensor
    scale: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(outputs, inputs, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer. [..., inputs] -> [..., outputs], in the dtype of x."""
        if can_launch(x.device):
            return self.multiply_on_gpu(x)
        rows = max(1, WEIGHTS_PER_BLOCK // self.weight.shape[1])
        blocks = [functional.linear(x, part.to(x.dtype)) for part in self.weight.split(rows)]
        product = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=-1)
        return product * self.scale.to(x.dtype) + self.bias

    def multiply_on_gpu(self, x: Tensor, gelu: bool = False) -> Tensor:
        """Apply the layer, and GELU in its tanh form if asked for, without widening all weights."""
        from rudalle_lib.models.layers.triton_int8 import int8_linear  # only GPUs have Triton

        return int8_linear(x, self.weight, self.scale, self.bias, gelu)


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise a weight.

    Args:
        weight: floating point [outputs, inputs].

    Returns:
        int8 [outputs, inputs] and the scales, float32 [outputs].
    """
    largest = weight.abs().amax(dim=1).float()
    scale = torch.where(largest > 0, largest, 1.0) / MAX_LEVEL
    levels = (weight.float() / scale[:, None]).round_()
    return levels.clamp_(-MAX_LEVEL, MAX_LEVEL).to(torch.int8), scale


def use_int8_linears(module: nn.Module) -> None:
    """Replace every linear layer below a module by an `Int8Linear` whose weights are not set."""
    replace_layers(
        module, nn.Linear, lambda layer: Int8Linear(layer.in_features, layer.out_features)
    )
