"""Masks follow the documented rule, and blockwise attention matches masked attention."""

from __future__ import annotations

import pytest
import torch

from rudalle_lib.models.sparse_attention import (
    LayerKind,
    SparseAttention,
    TokenGrid,
    cell_mask,
    layer_kind,
    sequence_mask,
)

GRIDS = [
    TokenGrid(4, 16, 16),
    TokenGrid(4, 16, 16, wrap=True),
    TokenGrid(3, 13, 12, wrap=True),
    TokenGrid(5, 4, 7),
    TokenGrid(5, 3, 5, wrap=True),
    TokenGrid(1, 1, 6),
    TokenGrid(2, 6, 1),
]


def sees(kind: LayerKind, grid: TokenGrid, query: int, key: int) -> bool:
    """The rule of the module, cell by cell."""
    if key > query:
        return False
    if kind is LayerKind.ROW:
        return query - key <= grid.width
    (row, column), (key_row, key_column) = divmod(query, grid.width), divmod(key, grid.width)
    if kind is LayerKind.COLUMN:
        return column == key_column
    reach = range(-5, 6)
    if grid.wrap:
        rows = {(key_row + step) % grid.height for step in reach}
        columns = {(key_column + step) % grid.width for step in reach}
    else:
        rows, columns = ({start + step for step in reach} for start in (key_row, key_column))
    return row in rows and column in columns


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("kind", LayerKind)
def test_cell_masks_follow_the_rule(kind: LayerKind, grid: TokenGrid) -> None:
    cells = range(grid.cells)
    expected = [[sees(kind, grid, query, key) for key in cells] for query in cells]
    assert cell_mask(kind, grid).tolist() == expected


@pytest.mark.parametrize("kind", LayerKind)
def test_text_is_visible_to_all_cells_and_sees_no_cell(kind: LayerKind) -> None:
    mask = sequence_mask(kind, TokenGrid(4, 3, 3))
    assert mask[4:, :4].all()
    assert torch.equal(mask[:4], torch.ones(4, 13).tril().bool())


def test_layer_kinds_follow_the_published_order() -> None:
    def letters(num_layers: int) -> str:
        return "".join(layer_kind(index, num_layers)[:2] for index in range(num_layers))

    assert letters(7) == "ro co ro ro ro co co".replace(" ", "")
    assert letters(6) == "ro co ro ro ro co".replace(" ", "")
    assert [layer_kind(index, 24) for index in (0, 1, 5, 21, 22, 23)] == [
        "row", "column", "column", "column", "row", "convolution"
    ]  # fmt: skip


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("kind", LayerKind)
def test_blockwise_attention_and_gradients_match_masks(kind: LayerKind, grid: TokenGrid) -> None:
    torch.manual_seed(0)
    query, key, value, weight = torch.randn(4, 2, 2, grid.length, 3, dtype=torch.float64)
    results = []
    for blockwise in (True, False):
        inputs = [part.clone().requires_grad_() for part in (query, key, value)]
        output = SparseAttention(grid, blockwise)(kind, *inputs)
        results.append((output, *torch.autograd.grad((output * weight).sum(), inputs)))
    for by_blocks, by_mask in zip(*results, strict=True):
        torch.testing.assert_close(by_blocks, by_mask, atol=1e-12, rtol=0)
