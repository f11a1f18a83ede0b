"""The three attention patterns of ruDALL-E, over text and a grid of image tokens.

A sequence is `text` positions that everyone sees (causally), then `height * width` cells in
reading order. A cell always sees all text, itself, and by the kind of its layer

- row: the `width` cells before it, crossing row ends;
- column: the cells above it in its column;
- convolution: earlier cells within 5 rows and 5 columns (of an 11 x 11 kernel).

Row and column layers are computed by blocks of a row or a column, which skips nearly all of the
score matrix; the convolution layer is dense. Softmax does not change when a constant is taken from
its scores, so the "PB-relax" of CogView (arXiv:2105.13290, 2.4) needs only queries that are scaled
before the product, as they are here.

Source: the masks of ai-forever/ru-dalle, `rudalle/dalle/image_attention.py`; the idea of sparse
factors: Child et al., "Generating Long Sequences with Sparse Transformers", arXiv:1904.10509.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional

KERNEL_RADIUS = 5  # rows and columns that the convolution pattern reaches to each side


class LayerKind(StrEnum):
    """Which cells of the image a layer lets a cell see."""

    ROW = "row"
    COLUMN = "column"
    CONVOLUTION = "convolution"


_AXES = {LayerKind.ROW: "h w", LayerKind.COLUMN: "w h"}  # blocks first, then the cells of a block


def layer_kind(index: int, num_layers: int) -> LayerKind:
    """The kind of layer `index` out of `num_layers`: every fourth is a column layer."""
    if (index - 1) % 4 == 0:
        return LayerKind.COLUMN
    return LayerKind.CONVOLUTION if index == num_layers - 1 else LayerKind.ROW


@dataclass(frozen=True)
class TokenGrid:
    """Layout of a sequence: how many text positions, then how many rows and columns of cells.

    `wrap` lets the convolution pattern reach around the edges (the v2 checkpoints).
    """

    text: int
    height: int
    width: int
    wrap: bool = False

    @property
    def cells(self) -> int:
        """Number of image positions."""
        return self.height * self.width

    @property
    def length(self) -> int:
        """Number of positions of a whole sequence."""
        return self.text + self.cells


def _near(distance: Tensor, size: int, wrap: bool) -> Tensor:
    near = distance <= KERNEL_RADIUS
    return near | (distance >= size - KERNEL_RADIUS) if wrap else near


def cell_mask(kind: LayerKind, grid: TokenGrid) -> Tensor:
    """Which cell (column) each cell (row) sees: bool [cells, cells], true where it does."""
    cell = torch.arange(grid.cells)
    behind = cell[:, None] - cell[None, :]  # how far the key lies behind the query
    if kind is LayerKind.ROW:
        return (behind >= 0) & (behind <= grid.width)
    if kind is LayerKind.COLUMN:
        return (behind >= 0) & (behind % grid.width == 0)
    row, column = cell // grid.width, cell % grid.width
    rows = _near((row[:, None] - row[None, :]).abs(), grid.height, grid.wrap)
    columns = _near((column[:, None] - column[None, :]).abs(), grid.width, grid.wrap)
    return (behind >= 0) & rows & columns


def sequence_mask(kind: LayerKind, grid: TokenGrid) -> Tensor:
    """Which position (column) each position (row) sees: bool [length, length]."""
    mask = torch.ones(grid.length, grid.length, dtype=torch.bool).tril()
    mask[grid.text :, grid.text :] = cell_mask(kind, grid)
    return mask


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention. query [..., Q, D], key and value [..., K, D] -> [..., Q, D].

    `bias`, [..., Q, K], is 0 where the query sees the key and -inf elsewhere. Dense products and
    a plain softmax, because on a CPU their backward pass is nearly twice as fast as that of
    `scaled_dot_product_attention` with a mask.
    """
    scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1) @ value


class SparseAttention:
    """Attention of whole sequences over themselves, for each kind of layer.

    Args:
        grid: the layout of the sequences.
        blockwise: compute row and column layers by blocks; False gives the plain masked form.
    """

    def __init__(self, grid: TokenGrid, blockwise: bool = True) -> None:
        self.grid = grid
        self.blockwise = blockwise
        self._biases: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def __call__(self, kind: LayerKind, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend. query, key, value [B, heads, S, D], S <= grid.length -> [B, heads, S, D]."""
        length = query.shape[2]
        if self.blockwise and length == self.grid.length and kind is not LayerKind.CONVOLUTION:
            return self._by_blocks(kind, query, key, value)
        bias = self._bias(kind, query)[:length, :length]
        return attend(query, key, value, bias)

    def _by_blocks(self, kind: LayerKind, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        text = self.grid.text
        text_key, text_value = key[:, :, :text], value[:, :, :text]
        causal = self._bias("text", query)
        of_text = attend(query[:, :, :text], text_key, text_value, causal)
        blocks = self._rows if kind is LayerKind.ROW else self._columns
        keys, values = blocks(key), blocks(value)
        count = keys.shape[2]
        keys = torch.cat((_repeat(text_key, count), keys), dim=-2)
        values = torch.cat((_repeat(text_value, count), values), dim=-2)
        queries = self._fold(query, kind)
        of_cells = attend(queries, keys, values, self._bias(f"{kind}-blocks", query))
        reading_order = rearrange(of_cells, f"b n {_AXES[kind]} d -> b n (h w) d")
        return torch.cat((of_text, reading_order), dim=2)

    def _fold(self, sequence: Tensor, kind: LayerKind) -> Tensor:
        """Cells of [B, heads, S, D] as rows [B, heads, H, W, D] or columns [B, heads, W, H, D]."""
        cells = sequence[:, :, self.grid.text :]
        return rearrange(cells, f"b n (h w) d -> b n {_AXES[kind]} d", w=self.grid.width)

    def _rows(self, sequence: Tensor) -> Tensor:
        """Each row behind the row before it: [B, heads, H, 2 W, D]; zeros before the first."""
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
            behind = torch.arange(2 * width) - torch.arange(width)[:, None]  # 0 ... W is seen
            seen = ((behind >= 0) & (behind <= width)).repeat(height, 1, 1)  # [H, W, 2 W]
            seen[0, :, :width] = False
            return functional.pad(seen, (text, 0), value=True)
        return sequence_mask(LayerKind(name), self.grid)


def _repeat(text: Tensor, count: int) -> Tensor:
    """Text keys or values [B, heads, T, D] for `count` blocks: [B, heads, count, T, D], no copy."""
    return repeat(text, "b n t d -> b n count t d", count=count)
