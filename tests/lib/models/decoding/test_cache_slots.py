"""Slot plans keep exactly the visible cells, in few slots."""

from __future__ import annotations

import pytest
import torch

from rudalle_lib.models.decoding.cache_slots import plan_slots
from rudalle_lib.models.sparse_attention import LayerKind, TokenGrid, cell_mask

CPU = torch.device("cpu")
SIZES = [(5, 5), (4, 7), (12, 12), (13, 3), (14, 6), (1, 4), (4, 1)]


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", LayerKind)
def test_visible_slots_hold_exactly_the_visible_cells(
    kind: LayerKind, size: tuple[int, int], wrap: bool
) -> None:
    grid = TokenGrid(3, *size, wrap=wrap)
    plan, mask = plan_slots(kind, grid, CPU), cell_mask(kind, grid)
    content = torch.full((plan.size,), -1)
    for cell in range(grid.cells):
        content[plan.slot[cell]] = cell
        visible = content[plan.visible[cell]].sort().values
        assert torch.equal(visible, mask[cell].nonzero()[:, 0])
        block = plan.slot[cell] // plan.block_size
        in_block = content.view(-1, plan.block_size)[block, plan.visible_in_block[cell]]
        assert torch.equal(in_block.sort().values, visible)


def test_slots_of_the_published_grid_are_few() -> None:
    sizes = {
        (kind, wrap): plan_slots(kind, TokenGrid(128, 32, 32, wrap), CPU).size
        for kind in LayerKind
        for wrap in (False, True)
    }
    assert sizes[LayerKind.ROW, False] == sizes[LayerKind.ROW, True] == 33
    assert sizes[LayerKind.COLUMN, False] == sizes[LayerKind.COLUMN, True] == 1024
    assert sizes[LayerKind.CONVOLUTION, False] == 6 * 32
    assert sizes[LayerKind.CONVOLUTION, True] == (5 + 6) * 32
