"""Which slots of a layer's cache hold the cells that are still visible to later cells.

This is exact, not an approximation; `sparse_attention` defines what each kind of layer sees.

- A row layer needs the last `width + 1` cells: a ring buffer.
- A column layer needs all cells, stored by column, so that a column is one slice.
- The convolution layer needs the last 6 rows of cells: a ring buffer, read through a short index
  list. If its pattern wraps around the edges (v2), it also needs the first 5 rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from rudalle_lib.models.sparse_attention import KERNEL_RADIUS, LayerKind, TokenGrid, cell_mask


@dataclass(frozen=True)
class SlotPlan:
    """Where a layer's cache stores the cells.

    Args:
        size: number of slots of the layer.
        slot: per cell, the slot that its key and value are written to.
        visible: per cell, the slots of the cells visible to it, including its own.
        block_size: slots per block; all slots visible to a cell are in one block.
    """

    size: int
    slot: list[int]
    visible: list[slice] | list[Tensor]
    block_size: int

    @cached_property
    def visible_in_block(self) -> list[Tensor]:
        """`visible` as tables on the CPU: int32 [K] per cell, counted within their block."""
        slots = torch.arange(self.size, dtype=torch.int32) % self.block_size
        return [
            slots[visible if isinstance(visible, slice) else visible.cpu()]
            for visible in self.visible
        ]

    @cached_property
    def max_visible(self) -> int:
        """Largest number of cells visible to one cell."""
        return max(len(table) for table in self.visible_in_block)


@lru_cache(maxsize=32)
def plan_slots(kind: LayerKind, grid: TokenGrid, device: torch.device) -> SlotPlan:
    """Plan the cache of a layer of this kind, with its index tables on `device`."""
    if kind is LayerKind.ROW:
        return _ring(grid)
    return _columns(grid) if kind is LayerKind.COLUMN else _window(grid, device)


def _ring(grid: TokenGrid) -> SlotPlan:
    size = min(grid.width + 1, grid.cells)
    slot = [cell % size for cell in range(grid.cells)]
    return SlotPlan(size, slot, [slice(0, min(cell + 1, size)) for cell in range(grid.cells)], size)


def _columns(grid: TokenGrid) -> SlotPlan:
    slot = [cell % grid.width * grid.height + cell // grid.width for cell in range(grid.cells)]
    top = [cell % grid.width * grid.height for cell in range(grid.cells)]
    visible = [slice(first, last + 1) for first, last in zip(top, slot, strict=True)]
    return SlotPlan(grid.cells, slot, visible, grid.height)


def _window(grid: TokenGrid, device: torch.device) -> SlotPlan:
    kept = KERNEL_RADIUS * grid.width if grid.wrap else 0  # first rows, visible again at the end
    ring = (KERNEL_RADIUS + 1) * grid.width
    cells = torch.arange(grid.cells)
    slot = torch.where(cells < kept, cells, kept + (cells - kept) % ring)
    visible = [slot[mask].to(device) for mask in cell_mask(LayerKind.CONVOLUTION, grid)]
    size = int(slot.max()) + 1
    return SlotPlan(size, slot.tolist(), visible, size)
