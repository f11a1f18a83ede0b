"""Which slots of a layer's cache hold the cells that are still to be seen.

Exact, not an approximation: see `sparse_attention` for what each kind of layer sees.

- A row layer needs the last `width + 1` cells: a ring;
- a column layer needs all cells, stored by column so that a column is one slice;
- the convolution layer needs the last 6 rows of cells: a ring, read through a short list of
  places; where its pattern wraps around the edges (v2), also the first 5 rows.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from rudalle_lib.models.sparse_attention import KERNEL_RADIUS, LayerKind, TokenGrid, cell_mask


@dataclass(frozen=True)
class SlotPlan:
    """Where a layer's cache keeps the cells.

    Args:
        size: slots a layer needs.
        slot: for each cell, the slot that its key and value are written to.
        visible: for each cell, the slots of the cells that it sees, itself included.
        block: slots that a cell sees lie in one block of so many.
    """

    size: int
    slot: list[int]
    visible: list[slice] | list[Tensor]
    block: int

    @cached_property
    def tables(self) -> list[Tensor]:
        """`visible` as tables on the CPU, int32 [K] for each cell, counted within their block."""
        slots = torch.arange(self.size, dtype=torch.int32) % self.block
        return [slots[seen if isinstance(seen, slice) else seen.cpu()] for seen in self.visible]

    @cached_property
    def most_visible(self) -> int:
        """How many cells the one that sees most does see."""
        return max(len(table) for table in self.tables)


@lru_cache(maxsize=32)
def plan_slots(kind: LayerKind, grid: TokenGrid, device: torch.device) -> SlotPlan:
    """Lay out the cache of a layer of this kind, with any index tables on `device`."""
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
    kept = KERNEL_RADIUS * grid.width if grid.wrap else 0  # first rows, seen again at the end
    ring = (KERNEL_RADIUS + 1) * grid.width
    cells = torch.arange(grid.cells)
    slot = torch.where(cells < kept, cells, kept + (cells - kept) % ring)
    visible = [slot[seen].to(device) for seen in cell_mask(LayerKind.CONVOLUTION, grid)]
    size = int(slot.max()) + 1
    return SlotPlan(size, slot.tolist(), visible, size)
