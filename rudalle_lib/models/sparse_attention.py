"""The three attention patterns of ruDALL-E, over text and a grid of image tokens.

A sequence has `text` positions with causal attention, then `height * width` cells in reading order.
A cell always sees all text and itself. Depending on the kind of its layer, it also sees

- row: the `width` cells before it, across row ends;
- column: the cells above it in its column;
- convolution: earlier cells within 5 rows and 5 columns (an 11 x 11 kernel).

Row and column layers are computed in blocks of one row or column, which skips nearly all of the
score matrix; the convolution layer is dense. Subtracting a constant from the scores does not change
the softmax, so only one part of CogView's "PB-relax" (arXiv:2105.13290, 2.4) is needed: queries are
scaled before the product.

Source: the masks of ai-forever/ru-dalle, `rudalle/dalle/image_attention.py`; sparse factors: Child
et al., "Generating Long Sequences with Sparse Transformers", arXiv:1904.10509.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional

KERNEL_RADIUS = 5
"""Rows and columns that the convolution pattern reaches in each direction."""


class LayerKind(StrEnum):
    """Which cells of the image are visible to a cell in a layer."""

    ROW = "row"
    COLUMN = "column"
    CONVOLUTION = "convolution"


_AXES = {LayerKind.ROW: "h w", LayerKind.COLUMN: "w h"}
"""Axes of the cells by kind: first the blocks, then the cells of a block."""


def layer_kind(index: int, num_layers: int) -> LayerKind:
    """Return the kind of a layer: every fourth is a column layer; the last may be a convolution."""
    if (index - 1) % 4 == 0:
        return LayerKind.COLUMN
    return LayerKind.CONVOLUTION if index == num_layers - 1 else LayerKind.ROW


@dataclass(frozen=True)
class TokenGrid:
    """Layout of a sequence.

    Args:
        text: text positions.
        height: rows of cells.
        width: columns of cells.
        wrap: whether the convolution pattern wraps around the edges, as in the v2 checkpoints.
    """

    text: int
    height: int
    width: int
    wrap: bool = False

    @property
    def cells(self) -> int:
        """Number of cells."""
        return self.height * self.width

    @property
    def length(self) -> int:
        """Number of positions in a sequence."""
        return self.text + self.cells


def _near(distance: Tensor, size: int, wrap: bool) -> Tensor:
    near = distance <= KERNEL_RADIUS
    return near | (distance >= size - KERNEL_RADIUS) if wrap else near


def cell_mask(kind: LayerKind, grid: TokenGrid) -> Tensor:
    """Return which cell (row) sees which cell (column): bool [cells, cells]."""
    cell = torch.arange(grid.cells)
    behind = cell[:, None] - cell[None, :]  # distance from key to query
    if kind is LayerKind.ROW:
        return (behind >= 0) & (behind <= grid.width)
    if kind is LayerKind.COLUMN:
        return (behind >= 0) & (behind % grid.width == 0)
    row, column = cell // grid.width, cell % grid.width
    rows = _near((row[:, None] - row[None, :]).abs(), grid.height, grid.wrap)
    columns = _near((column[:, None] - column[None, :]).abs(), grid.width, grid.wrap)
    return (behind >= 0) & rows & columns


def sequence_mask(kind: LayerKind, grid: TokenGrid) -> Tensor:
    """Return which position (row) sees which position (column): bool [length, length]."""
    mask = torch.ones(grid.length, grid.length, dtype=torch.bool).tril()
    mask[grid.text :, grid.text :] = cell_mask(kind, grid)
    return mask


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention with dense products.

    On a CPU the backward pass is nearly twice as fast as that of `scaled_dot_product_attention`
    with a mask.

    Args:
        query: [..., Q, D].
        key: [..., K, D].
        value: [..., K, D].
        bias: [..., Q, K], 0 where the query sees the key and -inf elsewhere; None if it sees all.

    Returns:
        [..., Q, D].
    """
    scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1) @ value


class SparseAttention:
    """Attention of whole sequences over themselves, for each kind of layer.

    Args:
        grid: the layout of the sequences.
        blockwise: compute row and column layers in blocks; False uses dense masks.
    """

    def __init__(self, grid: TokenGrid, blockwise: bool = True) -> None:
        self.grid = grid
        self.blockwise = blockwise
        self._biases: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def __call__(self, kind: LayerKind, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend. query, key and value [B, heads, S <= grid.length, D] -> the same shape."""
        length = query.shape[2]
        if self.blockwise and length == self.grid.length and kind is not LayerKind.CONVOLUTION:
            return self._by_blocks(kind, query, key, value)
        bias = self._bias(kind, query)[:length, :length]
        return attend(query, key, value, bias)

    def _by_blocks(self, kind: LayerKind, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        text = self.grid.text
        text_key, text_value = key[:, :, :text], value[:, :, :text]
        causal = self._bias("text", query)
        text_contexts = attend(query[:, :, :text], text_key, text_value, causal)
        blocks = self._rows if kind is LayerKind.ROW else self._columns
        keys, values = blocks(key), blocks(value)
        count = keys.shape[2]
        keys = torch.cat((_repeat(text_key, count), keys), dim=-2)
        values = torch.cat((_repeat(text_value, count), values), dim=-2)
        queries = self._fold(query, kind)
        cell_contexts = attend(queries, keys, values, self._bias(f"{kind}-blocks", query))
        reading_order = rearrange(cell_contexts, f"b n {_AXES[kind]} d -> b n (h w) d")
        return torch.cat((text_contexts, reading_order), dim=2)

    def _fold(self, sequence: Tensor, kind: LayerKind) -> Tensor:
        """Extract the cells. [B, heads, S, D] -> [B, heads, H, W, D], or W before H for columns."""
        cells = sequence[:, :, self.grid.text :]
        return rearrange(cells, f"b n (h w) d -> b n {_AXES[kind]} d", w=self.grid.width)

    def _rows(self, sequence: Tensor) -> Tensor:
        """Each row after its previous row, [B, heads, H, 2 W, D]; zeros before the first row."""
        rows = self._fold(sequence, LayerKind.ROW)
        before = functional.pad(rows[:, :, :-1], (0, 0, 0, 0, 1, 0))
        return torch.cat((before, rows), dim=3)

    def _columns(self, sequence: Tensor) -> Tensor:
        return self._fold(sequence, LayerKind.COLUMN)

    def _bias(self, name: str, like: Tensor) -> Tensor:
        key = (str(name), like.device, like.dtype)
        if key not in self._biases:
            mask = self._mask(str(name)).to(like.device)
            bias = torch.zeros(mask.shape, device=like.device, dtype=like.dtype)
            self._biases[key] = bias.masked_fill(~mask, -torch.inf)
        return self._biases[key]

    def _mask(self, name: str) -> Tensor:
        text, height, width = self.grid.text, self.grid.height, self.grid.width
        if name == "text":
            return torch.ones(text, text, dtype=torch.bool).tril()
        if name == "column-blocks":
            return torch.ones(height, text + height, dtype=torch.bool).tril(text)
        if name == "row-blocks":
            behind = torch.arange(2 * width) - torch.arange(width)[:, None]  # 0 ... W are visible
            visible = ((behind >= 0) & (behind <= width)).repeat(height, 1, 1)  # [H, W, 2 W]
            visible[0, :, :width] = False
            return functional.pad(visible, (text, 0), value=True)
        return sequence_mask(LayerKind(name), self.grid)


def _repeat(text: Tensor, count: int) -> Tensor:
    """Repeat text keys or values for each block. [B, heads, T, D] -> [B, heads, count, T, D]."""
    return repeat(text, "b n t d -> b n count t d", count=count)
