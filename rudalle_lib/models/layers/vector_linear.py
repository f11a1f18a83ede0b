"""Linear layers with vectors, for CPUs without instructions for bfloat16 or 8-bit products.

Most rented CPUs have AVX2 and nothing faster. There, torch multiplies bfloat16 weights many times
more slowly than float32 ones. `VectorLinear` keeps them in bfloat16, half the memory to read, and
multiplies in float32. `VectorInt8Linear` multiplies 8-bit integers in 16 bits: oneDNN's 8-bit
products of such a CPU saturate. See `kernels/csrc/vector_linear.cpp`, and docs/performance.md for
what was measured.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from rudalle_lib import kernels
from rudalle_lib.kernels.abi import STEP_BYTES, LinearArgs
from rudalle_lib.models.layers.compiled_linear import CompiledLinear, Workspace, point_to_scale
from rudalle_lib.models.layers.int8_linear import Int8Linear

PANEL = STEP_BYTES // 2
"""Outputs that are computed together."""

PACKED_BYTES = 4
"""Bytes of a row per step: a float32 number, or two 8-bit levels in 16 bits each."""


class VectorLinear(CompiledLinear):
    """`nn.Linear` in bfloat16 with products and sums in float32; requires `can_use_vectors`."""

    kernel = "vector_linear"

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take weight [outputs, inputs] and bias [outputs], both in bfloat16."""
        weight = weight.detach()
        outputs, inputs = weight.shape
        bias = weight.new_zeros(outputs) if bias is None else bias
        padded = functional.pad(weight, (0, 0, 0, -outputs % PANEL))
        side_by_side = "(panel half column) step -> panel step column half"
        panels = rearrange(padded, side_by_side, half=2, column=PANEL // 2).contiguous()
        super().__init__(inputs, outputs, panels, bias)

    def _complete(self, args: LinearArgs, workspace: Workspace) -> tuple[Tensor, ...]:
        return point_to_packed(args, self._weight, workspace)


class VectorInt8Linear(CompiledLinear):
    """`DynamicInt8Linear` with products of 16 bits; requires `can_use_vectors`."""

    kernel = "vector_int8_linear"
    scale: Tensor

    def __init__(self, layer: Int8Linear) -> None:
        outputs, inputs = layer.weight.shape
        padded = functional.pad(layer.weight, (0, inputs % 2, 0, -outputs % PANEL))
        pairs = "(panel column) (step two) -> panel step column two"
        panels = rearrange(padded, pairs, column=PANEL, two=2).contiguous()
        super().__init__(inputs, outputs, panels, layer.bias)
        self.register_buffer("scale", layer.scale)

    def _complete(self, args: LinearArgs, workspace: Workspace) -> tuple[Tensor, ...]:
        packed = point_to_packed(args, self._weight, workspace)
        return (*packed, *point_to_scale(args, self.scale))


def point_to_packed(args: LinearArgs, panels: Tensor, workspace: Workspace) -> tuple[Tensor]:
    """Set the depth of the weight [panels, depth, ...] and the memory for packed inputs."""
    args.depth = panels.shape[1]
    packed = workspace.get(args.rows * args.depth * PACKED_BYTES, torch.uint8)
    args.tiles = packed.data_ptr()
    return (packed,)


def can_use_vectors(weight: Tensor) -> bool:
    """Whether this CPU can multiply a weight, bfloat16 or int8 [outputs, inputs], with vectors."""
    return (
        kernels.has_vectors()
        and weight.device.type == "cpu"
        and weight.dtype in (torch.bfloat16, torch.int8)
    )
