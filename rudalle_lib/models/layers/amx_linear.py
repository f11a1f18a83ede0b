"""Linear layers on CPUs with AMX, close to memory bandwidth: in bfloat16 and 8-bit integers.

oneDNN's kernels alternate between waiting for weights and multiplying; these prefetch weights while
they multiply others. Measured on two cores with Malevich's layers: 0.5 to 0.8 of oneDNN's time for
8 to 128 rows in bfloat16, 0.6 to 0.7 in 8 bits
(`python -m tests.benchmarks.measure_engine linears --batch 64`). See `kernels/csrc/amx_linear.cpp`.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from rudalle_lib import kernels
from rudalle_lib.kernels.abi import (
    PANELS_PER_STEP,
    ROWS_PER_STEP,
    TILE_COLUMNS,
    TILE_ROW_BYTES,
    LinearArgs,
)
from rudalle_lib.models.layers.compiled_linear import CompiledLinear, Workspace, point_to_scale
from rudalle_lib.models.layers.int8_linear import Int8Linear

MAX_DEPTH = 64
"""Most tiles per row that are multiplied in one block: 256 rows of them fit into a core's cache."""


class AmxLinearBase(CompiledLinear):
    """The common part of both layers."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Lay out the weight in tiles.

        Args:
            weight: bfloat16 or int8 [outputs, inputs].
            bias: [outputs], in the dtype of the inputs.

        Raises:
            ValueError: `can_use_amx` is false for the weight.
        """
        if not can_use_amx(weight):
            raise ValueError(
                f"no AMX layout for a weight {list(weight.shape)} in {weight.dtype} on "
                f"{weight.device}; check can_use_amx first"
            )
        outputs, inputs = weight.shape
        tiles = kernels.to_tiles(weight)
        steps = tiles.shape[1]
        self._blocks = next(n for n in range(-(-steps // MAX_DEPTH), steps + 1) if steps % n == 0)
        blocks = "panel (block depth) ... -> block panel depth ..."
        weight = rearrange(tiles, blocks, block=self._blocks).contiguous()
        super().__init__(inputs, outputs, weight, bias)

    def _complete(self, args: LinearArgs, workspace: Workspace) -> tuple[Tensor, ...]:
        padded = -(-args.rows // ROWS_PER_STEP) * ROWS_PER_STEP
        tiles = workspace.get(padded * self.inputs, self._weight.dtype)
        sums = workspace.get(padded * self.outputs * (self._blocks > 1), torch.float32)
        args.blocks, args.depth = self._blocks, self._weight.shape[2]
        args.tiles, args.sums = tiles.data_ptr(), sums.data_ptr()
        return tiles, sums


class AmxLinear(AmxLinearBase):
    """`nn.Linear` in bfloat16, for inference only. The weight must satisfy `can_use_amx`."""

    kernel = "amx_linear"

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take weight [outputs, inputs] and bias [outputs], both in bfloat16."""
        weight = weight.detach()
        super().__init__(weight, weight.new_zeros(len(weight)) if bias is None else bias)


class AmxInt8Linear(AmxLinearBase):
    """`DynamicInt8Linear` on AMX. The weight must satisfy `can_use_amx`."""

    kernel = "amx_int8_linear"
    scale: Tensor

    def __init__(self, layer: Int8Linear) -> None:
        super().__init__(layer.weight, layer.bias)
        self.register_buffer("scale", layer.scale)

    def _complete(self, args: LinearArgs, workspace: Workspace) -> tuple[Tensor, ...]:
        return (*super()._complete(args, workspace), *point_to_scale(args, self.scale))


def can_use_amx(weight: Tensor) -> bool:
    """Whether this CPU has AMX and a weight, bfloat16 or int8 [outputs, inputs], fits its tiles."""
    outputs, inputs = weight.shape
    return (
        kernels.has_amx()
        and weight.device.type == "cpu"
        and weight.dtype in (torch.bfloat16, torch.int8)
        and inputs * weight.element_size() % TILE_ROW_BYTES == 0
        and outputs % (PANELS_PER_STEP * TILE_COLUMNS) == 0
    )
