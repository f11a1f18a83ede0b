"""`DynamicInt8Linear` for a processor with AMX: its numbers, at the speed of memory.

oneDNN's kernel takes twice the time that reading the weights takes; see `native/int8_product.cpp`.
"""

from __future__ import annotations

import ctypes

import torch
from einops import rearrange
from torch import Tensor, nn

from rudalle_lib.models import native
from rudalle_lib.models.int8_linear import Int8Linear

# As in native/int8_product.cpp.
TILE_ROWS = 16
TILE_BYTES = 64
PANEL = 16


class _Product(ctypes.Structure):
    _fields_ = (
        *native.numbers("rows", "inputs", "outputs", "gelu"),
        *native.addresses("input", "weight", "scale", "bias", "levels", "steps", "output"),
    )


class TiledInt8Linear(nn.Module):
    """As `DynamicInt8Linear`, for what `can_tile`."""

    scale: Tensor

    def __init__(self, layer: Int8Linear) -> None:
        super().__init__()
        self.bias = layer.bias
        self.register_buffer("scale", layer.scale)
        self.inputs = layer.weight.shape[1]
        tiles = "(panel column) (depth quad four) -> panel depth quad column four"
        self._weight = rearrange(
            layer.weight, tiles, column=PANEL, quad=TILE_ROWS, four=4
        ).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs], in the dtype of x, that of the bias."""
        return self._multiply(x, gelu=False)

    def forward_gelu(self, x: Tensor) -> Tensor:
        """The same and the tanh form of GELU after it, in one pass."""
        return self._multiply(x, gelu=True)

    def _multiply(self, x: Tensor, gelu: bool) -> Tensor:
        if x.shape[-1] != self.inputs or x.dtype != self.bias.dtype:
            raise ValueError(
                f"x: expected [..., {self.inputs}] in {self.bias.dtype}, "
                f"found {list(x.shape)} in {x.dtype}"
            )
        x, rows = x.contiguous(), x.numel() // self.inputs
        padded = -(-rows // TILE_ROWS) * TILE_ROWS
        levels = torch.empty(padded * self.inputs, dtype=torch.int8)
        steps = torch.empty(rows)
        output = x.new_empty(*x.shape[:-1], len(self.scale))
        product = _Product(
            rows, self.inputs, len(self.scale), gelu,
            x.data_ptr(), self._weight.data_ptr(), self.scale.data_ptr(), self.bias.data_ptr(),
            levels.data_ptr(), steps.data_ptr(), output.data_ptr(),
        )  # fmt: skip
        native.call("int8_product", x.dtype, product, self._weight.numel())
        return output


def can_tile(layer: Int8Linear) -> bool:
    """Whether this processor has the tiles and a layer fits them."""
    outputs, inputs = layer.weight.shape
    return (
        native.can_multiply_tiles()
        and layer.weight.device.type == "cpu"
        and layer.bias.dtype in (torch.float32, torch.bfloat16)
        and inputs % TILE_BYTES == 0
        and outputs % PANEL == 0
    )
