"""Linear layers for inference on a CPU, with weights reordered once for oneDNN.

`nn.Linear` passes plain weights to oneDNN, which reorders them in every product, and uses another
library for float32. Measured on one Zen 4 core, two layers of Malevich: bfloat16 with 64 rows 64
instead of 75 ms, with 8 rows 14 instead of 23 ms; float32 with 64 rows 124 instead of 211 ms.

The two operators are those that torch.compile emits for linear layers on a CPU. If they are missing
or not faster, layers are not replaced. With AMX, `amx_linear` is faster still; on CPUs for which
oneDNN has no bfloat16, `vector_linear` takes its place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rudalle_lib.models.layers.amx_linear import AmxLinear, can_use_amx
from rudalle_lib.models.layers.replace import replace_layers
from rudalle_lib.models.layers.vector_linear import VectorLinear, can_use_vectors


class OnednnLinear(nn.Module):
    """`nn.Linear` for inference only; its weight cannot be read back."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take weight [outputs, inputs] and bias [outputs]; requires `can_use_onednn`."""
        super().__init__()
        self.bias = bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer. [..., inputs] -> [..., outputs]."""
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self.bias, "none", [], "")

    def forward_gelu(self, x: Tensor) -> Tensor:
        """Apply the layer and then GELU (tanh form), in one pass."""
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self.bias, "gelu", [], "tanh")


def can_use_onednn(weight: Tensor) -> bool:
    """Whether this machine has a faster layout for a weight."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    if not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    if weight.dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype is torch.float32


@torch.no_grad()
def fastest_linear(
    weight: Tensor, bias: Tensor | None
) -> OnednnLinear | AmxLinear | VectorLinear | None:
    """Build the fastest layer for inference.

    Args:
        weight: [outputs, inputs].
        bias: [outputs].

    Returns:
        None if a plain `nn.Linear` is the fastest.
    """
    bias = None if bias is None else bias.detach()
    if weight.dtype is torch.bfloat16 and can_use_amx(weight):
        return AmxLinear(weight, bias)
    if can_use_onednn(weight):
        return OnednnLinear(weight, bias)
    if weight.dtype is torch.bfloat16 and can_use_vectors(weight):
        return VectorLinear(weight, bias)
    return None


def use_fastest_linears(module: nn.Module) -> None:
    """Replace every linear layer below a module by the fastest one for inference."""
    replace_layers(
        module, nn.Linear, lambda layer: fastest_linear(layer.weight, layer.bias) or layer
    )
