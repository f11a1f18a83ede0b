"""Linear layers for a processor with AMX, near the speed of memory: bfloat16 and 8-bit integers.

oneDNN's kernels wait for weights or multiply, ours fetch some while they multiply others. Measured
on two cores with Malevich's layers: 0.5 to 0.8 of oneDNN's time for 8 to 128 rows in bfloat16, 0.6
to 0.7 in 8 bits (`python -m tests.benchmarks.measure_engine linears --batch 64`). See
`native/tile_product.cpp`.
"""

from __future__ import annotations

import ctypes

import torch
from einops import rearrange
from torch import Tensor, nn

from rudalle_lib.models import native
from rudalle_lib.models.int8_linear import Int8Linear

# As in native/tile_product.cpp.
TILE_BYTES = 64
PANELS = 2
ROWS = 32

#: Tiles of a row that are multiplied at once, at most: 256 rows of so many fit a core's cache.
DEEPEST = 64


class _Product(ctypes.Structure):
    _fields_ = (
        *native.numbers("rows", "inputs", "outputs", "blocks", "depth", "gelu"),
        *native.addresses("input", "weight", "scale", "bias", "tiles", "steps", "sums", "output"),
    )


class Room:
    """Memory for products that are made one after the other."""

    def __init__(self) -> None:
        self._tensors: dict[torch.dtype, Tensor] = {}

    def take(self, numbers: int, dtype: torch.dtype) -> Tensor:
        """So many numbers, the same as the last time."""
        if dtype not in self._tensors or self._tensors[dtype].numel() < numbers:
            self._tensors[dtype] = torch.empty(numbers, dtype=dtype)
        return self._tensors[dtype]


class AnyTiledLinear(nn.Module):
    """What both kinds do; `_function` is the compiled one."""

    _function: str

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Take weight [outputs, inputs] in its own dtype and bias [outputs] in that of inputs."""
        super().__init__()
        if not can_tile(weight):
            raise ValueError(
                f"a weight {list(weight.shape)} in {weight.dtype} cannot be tiled here"
            )
        self.bias = bias
        self.outputs, self.inputs = weight.shape
        tiles = native.in_tiles(weight)
        steps = tiles.shape[1]
        self._blocks = next(n for n in range(-(-steps // DEEPEST), steps + 1) if steps % n == 0)
        blocks = "panel (block depth) ... -> block panel depth ..."
        self._weight = rearrange(tiles, blocks, block=self._blocks).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs], in the dtype of x, that of the bias."""
        return self._multiply(x, gelu=False)

    def forward_gelu(self, x: Tensor) -> Tensor:
        """The same and the tanh form of GELU after it, in one pass."""
        return self._multiply(x, gelu=True)

    def _multiply(self, x: Tensor, gelu: bool) -> Tensor:
        output = x.new_empty(*x.shape[:-1], self.outputs)
        self.into(output, x.contiguous(), Room(), gelu).run()
        return output

    def into(self, output: Tensor, x: Tensor, room: Room, gelu: bool = False) -> native.Operation:
        """What `forward` and `forward_gelu` do, of contiguous tensors."""
        if x.shape[-1] != self.inputs or x.dtype != self.bias.dtype:
            raise ValueError(
                f"x: expected [..., {self.inputs}] in {self.bias.dtype}, "
                f"found {list(x.shape)} in {x.dtype}"
            )
        rows = x.numel() // self.inputs
        padded = -(-rows // ROWS) * ROWS
        tiles = room.take(padded * self.inputs, self._weight.dtype)
        sums = room.take(padded * self.outputs * (self._blocks > 1), torch.float32)
        product = _Product(
            rows=rows,
            inputs=self.inputs,
            outputs=self.outputs,
            blocks=self._blocks,
            depth=self._weight.shape[2],
            gelu=gelu,
            input=x.data_ptr(),
            weight=self._weight.data_ptr(),
            bias=self.bias.data_ptr(),
            tiles=tiles.data_ptr(),
            sums=sums.data_ptr(),
            output=output.data_ptr(),
        )
        tensors = x, tiles, sums, output, *self._scale_back(product)
        return native.operation(self._function, x.dtype, product, self._weight.numel(), *tensors)

    def _scale_back(self, product: _Product) -> tuple[Tensor, ...]:
        """Say by what sums are multiplied, if by anything; what to keep for it."""
        return ()


class TiledLinear(AnyTiledLinear):
    """As `nn.Linear` in bfloat16, without gradients, for what `can_tile`."""

    _function = "tiled_product"

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take weight [outputs, inputs] and bias [outputs]."""
        weight = weight.detach()
        super().__init__(weight, weight.new_zeros(len(weight)) if bias is None else bias)


class TiledInt8Linear(AnyTiledLinear):
    """As `dynamic_int8_linear.DynamicInt8Linear`, for what `can_tile`."""

    _function = "tiled_int8_product"
    scale: Tensor

    def __init__(self, layer: Int8Linear) -> None:
        super().__init__(layer.weight, layer.bias)
        self.register_buffer("scale", layer.scale)

    def _scale_back(self, product: _Product) -> tuple[Tensor, ...]:
        steps = torch.empty(product.rows)
        product.scale, product.steps = self.scale.data_ptr(), steps.data_ptr()
        return self.scale, steps


def can_tile(weight: Tensor) -> bool:
    """Whether this processor has the tiles and a weight, bfloat16 or int8, fits them."""
    outputs, inputs = weight.shape
    return (
        native.can_multiply_tiles()
        and weight.device.type == "cpu"
        and weight.dtype in (torch.bfloat16, torch.int8)
        and inputs * weight.element_size() % TILE_BYTES == 0
        and outputs % (PANELS * native.TILE_COLUMNS) == 0
    )
