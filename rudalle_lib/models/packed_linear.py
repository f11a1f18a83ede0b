"""Linear layers for inference on a CPU: weights laid out once as the fastest kernels read them.

`nn.Linear` hands oneDNN plain weights, which it lays out again in every product, and takes another
library for float32. Measured on one Zen 4 core, two layers of Malevich: bfloat16 at 64 rows 64
instead of 75 ms, at 8 rows 14 instead of 23; float32 at 64 rows 124 instead of 211 ms.

The two operators are those that torch's own compiler emits for a linear layer on a CPU. Where they
are missing, or cannot help, layers stay as they are; where there is AMX, `tiled_linear` is faster.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rudalle_lib.models.replacing import replace_layers
from rudalle_lib.models.tiled_linear import TiledLinear, can_tile


class PackedLinear(nn.Module):
    """As `nn.Linear`, without gradients, and its weight cannot be read back."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take weight [outputs, inputs] and bias [outputs]; see `can_pack`."""
        super().__init__()
        self.bias = bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self.bias, "none", [], "")

    def forward_gelu(self, x: Tensor) -> Tensor:
        """The same and the tanh form of GELU after it, in one pass."""
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self.bias, "gelu", [], "tanh")


def can_pack(weight: Tensor) -> bool:
    """Whether there is a faster layout for a weight on this machine."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    if not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    if weight.dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype is torch.float32


@torch.no_grad()
def packed_linear(weight: Tensor, bias: Tensor | None) -> PackedLinear | TiledLinear | None:
    """The fastest layer with weight [outputs, inputs] and bias [outputs]; None: a plain one."""
    bias = None if bias is None else bias.detach()
    if weight.dtype is torch.bfloat16 and can_tile(weight):
        return TiledLinear(weight, bias)
    return PackedLinear(weight, bias) if can_pack(weight) else None


def with_packed_linears(module: nn.Module) -> None:
    """Put the fastest layer in the place of every linear layer below a module."""
    replace_layers(
        module, nn.Linear, lambda layer: packed_linear(layer.weight, layer.bias) or layer
    )
