"""A linear layer that multiplies 8-bit integers: dynamic quantisation, for a CPU.

With VNNI a CPU does twice as many such products as of any other numbers.

Weights as `int8_linear` stores them. Each row of inputs is rounded when it comes to 253 levels of
its own, `x = (level - 128) * step`, and the sum of the products, exact in 32 bits, is scaled back.
So a row's output depends on no other row, as in float, and not even on the order of summation.

Source: LLM.int8()'s vector-wise quantisation (Dettmers et al., arXiv:2208.07339) with no exception
for outliers, which the layer norms before most of the decoder's layers keep small.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rudalle_lib.models.int8_linear import Int8Linear
from rudalle_lib.models.replacing import replace_layers
from rudalle_lib.models.tiled_linear import TiledInt8Linear, can_tile

ZERO = 128
"""The level of 0: levels are unsigned, as the instruction wants its first factor."""

HIGHEST = 126
"""The level above it of a row's largest number: one more fits, as bfloat16 may round it up."""

#: No row is divided by less, so that one of zeros stays zeros.
SMALLEST_STEP = 1e-20


class DynamicInt8Linear(nn.Module):
    """As `Int8Linear`, with inputs rounded to 8 bits too; its weight cannot be read back.

    Only where `devices.can_multiply_int8`.
    """

    scale: Tensor

    def __init__(self, layer: Int8Linear) -> None:
        super().__init__()
        self.bias = layer.bias
        self.register_buffer("scale", layer.scale)
        self.register_buffer("_weight_zeros", torch.zeros(len(layer.scale), dtype=torch.int64))
        self._weight = torch.ops.onednn.qlinear_prepack(layer.weight, None)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs], in the dtype of x, float32 or bfloat16."""
        largest = x.abs().amax(dim=-1, keepdim=True)
        step = (largest / HIGHEST).clamp_(min=SMALLEST_STEP)  # [..., 1]
        levels = (x / step).round_().to(torch.int8).view(torch.uint8).bitwise_xor_(ZERO)  # + ZERO
        sums = torch.ops.onednn.qlinear_pointwise(
            levels, 1.0, ZERO, self._weight, self.scale, self._weight_zeros, None,
            1.0, 0, x.dtype, "none", [], "",
        )  # fmt: skip
        return torch.addcmul(self.bias, sums, step)


def with_dynamic_int8_linears(module: nn.Module) -> None:
    """Put one of these in the place of every `Int8Linear` below a module, tiled where it can be."""

    def fastest(layer: Int8Linear) -> nn.Module:
        return TiledInt8Linear(layer) if can_tile(layer.weight) else DynamicInt8Linear(layer)

    replace_layers(module, Int8Linear, fastest)
