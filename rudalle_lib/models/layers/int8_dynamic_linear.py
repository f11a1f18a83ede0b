"""Linear layers that multiply 8-bit integers (dynamic quantisation).

With VNNI a CPU makes twice as many 8-bit products per second as products of any other type. Without
it, `vector_linear` is still faster than float32.

Weights are stored as in `int8_linear`. Each input row is quantised to 253 levels with its own step,
`x = (level - 128) * step`. The sum of the products is exact in int32 and is then dequantised. The
layer is therefore batch-invariant, and its result does not even depend on the order of summation.

Source: vector-wise quantisation as in LLM.int8() (Dettmers et al., arXiv:2208.07339), without the
separate treatment of outliers: the layer norms before most of the decoder's layers keep them small.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rudalle_lib.models.layers.amx_linear import AmxInt8Linear, can_use_amx
from rudalle_lib.models.layers.int8_linear import Int8Linear
from rudalle_lib.models.layers.replace import replace_layers
from rudalle_lib.models.layers.triton_support import BoundedRows, RoundedRows, can_launch
from rudalle_lib.models.layers.vector_linear import VectorInt8Linear, can_use_vectors

ZERO_POINT = 128
"""The level of 0. Levels are unsigned, as the instruction requires of its first operand."""

MAX_LEVEL = 126
"""Level of a row's largest value, above the zero point; bfloat16 may round it up by one."""

MIN_STEP = 1e-20
"""Smallest step, so that a row of zeros stays zero."""


class DynamicInt8Linear(nn.Module):
    """`Int8Linear` with inputs quantised to 8 bits too; its weight cannot be read back.

    Requires `has_vnni`: on other CPUs oneDNN's sums saturate.
    """

    scale: Tensor

    def __init__(self, layer: Int8Linear) -> None:
        super().__init__()
        self.bias = layer.bias
        self.register_buffer("scale", layer.scale)
        self.register_buffer("_weight_zeros", torch.zeros(len(layer.scale), dtype=torch.int64))
        self._weight = torch.ops.onednn.qlinear_prepack(layer.weight, None)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer. [..., inputs] -> [..., outputs], both float32 or both bfloat16."""
        largest = x.abs().amax(dim=-1, keepdim=True)
        step = (largest / MAX_LEVEL).clamp_(min=MIN_STEP)  # [..., 1]
        # Flipping the highest bit adds the zero point.
        levels = (x / step).round_().to(torch.int8).view(torch.uint8).bitwise_xor_(ZERO_POINT)
        sums = torch.ops.onednn.qlinear_pointwise(
            levels, 1.0, ZERO_POINT, self._weight, self.scale, self._weight_zeros, None,
            1.0, 0, x.dtype, "none", [], "",
        )  # fmt: skip
        return torch.addcmul(self.bias, sums, step)


class GpuDynamicInt8Linear(nn.Module):
    """`Int8Linear` with inputs quantised to 8 bits too, on a GPU with Triton; see `triton_int8`."""

    weight: Tensor
    scale: Tensor

    def __init__(self, layer: Int8Linear) -> None:
        super().__init__()
        self.bias = layer.bias
        self.register_buffer("weight", layer.weight)
        self.register_buffer("scale", layer.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer. [..., inputs] -> [..., outputs], in the dtype of x."""
        return self.multiply_on_gpu(x)

    def multiply_on_gpu(self, x: Tensor | RoundedRows | BoundedRows, gelu: bool = False) -> Tensor:
        """Apply the layer, and GELU in its tanh form if asked for."""
        # Only GPUs have Triton.
        from rudalle_lib.models.layers.triton_int8 import dynamic_int8_linear

        return dynamic_int8_linear(x, self.weight, self.scale, self.bias, gelu)


def has_vnni() -> bool:
    """Whether this CPU and this build of torch multiply 8-bit integers exactly."""
    names = ("qlinear_prepack", "qlinear_pointwise")
    return (
        torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.onednn, name) for name in names)
        and torch.cpu._is_vnni_supported()
    )


def fastest_int8_linear(layer: Int8Linear) -> nn.Module:
    """Build the fastest layer that multiplies in 8 bits; the same one if there is none."""
    if layer.weight.is_cuda:
        return GpuDynamicInt8Linear(layer) if can_launch(layer.weight.device) else layer
    if can_use_amx(layer.weight):
        return AmxInt8Linear(layer)
    if has_vnni():
        return DynamicInt8Linear(layer)
    return VectorInt8Linear(layer) if can_use_vectors(layer.weight) else layer


def use_dynamic_int8_linears(module: nn.Module) -> None:
    """Replace every `Int8Linear` below a module by the fastest that multiplies in 8 bits."""
    replace_layers(module, Int8Linear, fastest_int8_linear)
