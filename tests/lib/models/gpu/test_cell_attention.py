"""Attention from a cell equals a dense softmax in float64, for every kind of layer and layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rudalle_lib.models.gpu.cell_attention import LayerCache, attend
from rudalle_lib.models.gpu.image_groups import ImageGroups, empty_groups, group_rows, set_groups
from rudalle_lib.models.gpu.slot_tables import slot_tables
from rudalle_lib.models.layers.triton_support import BoundedRows
from rudalle_lib.models.sparse_attention import LayerKind, TokenGrid, cell_mask
from tests.support.layer_patterns import PATTERNS

HEADS = 2

BOUND = 5e-6 if torch.cuda.is_available() else 1e-6
"""Largest error in float32; a GPU's exponentials are approximate."""


def groups_of(prompt_of: list[int], device: torch.device) -> ImageGroups:
    """The groups of a batch, with one empty group."""
    found = group_rows(prompt_of)
    groups = empty_groups(len(found) + 1, device)
    set_groups(groups, found)
    return groups


def dense(
    projected: Tensor, text: tuple[Tensor, Tensor], prompt_of: list[int], seen: Tensor
) -> Tensor:
    """Attention of the last cell of projected [B, cells, 3 C] in float64, [B, C]."""
    images, cells, _ = projected.shape
    parts = projected.double().view(images, cells, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    query, key, value = parts[0][:, :, -1:], parts[1][:, :, seen], parts[2][:, :, seen]
    key = torch.cat((text[0].double()[prompt_of], key), dim=2)
    value = torch.cat((text[1].double()[prompt_of], value), dim=2)
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return (scores.softmax(-1) @ value).flatten(1)


def store(cache: LayerCache, slot: int, projected: Tensor) -> None:
    """Store a cell of each row, projected [B, 3 C], without attending from it."""
    _, key, value = projected.unflatten(1, (3, HEADS, -1)).unbind(1)
    cache.key[:, :, slot] = key.to(cache.key.device)
    cache.value[:, :, slot] = value.to(cache.key.device)


def largest_error(
    kind: LayerKind,
    grid: TokenGrid,
    prompt_of: list[int],
    device: torch.device,
    width: int = 16,
    dtype: torch.dtype = torch.float32,
    cells: list[int] | None = None,
) -> float:
    """Run the cells of a list, with all others in the cache before; None runs every cell."""
    torch.manual_seed(0)
    rows, prompts = len(prompt_of), max(prompt_of) + 1
    tables, groups = slot_tables(kind, grid, device), groups_of(prompt_of, device)
    text = tuple(torch.randn(prompts, HEADS, grid.text, width).to(dtype) for _ in range(2))
    unset = torch.full((rows, HEADS, tables.size, width), torch.nan, dtype=dtype, device=device)
    cache = LayerCache(unset, unset.clone(), text[0].to(device), text[1].to(device))
    projected = torch.randn(rows, grid.cells, 3 * HEADS * width).to(dtype)
    contexts = torch.full((rows, HEADS * width), torch.nan, dtype=dtype, device=device)
    mask, worst = cell_mask(kind, grid), 0.0
    for cell in range(grid.cells):
        if cells is not None and cell not in cells:
            store(cache, int(tables.slot[cell]), projected[:, cell])
            continue
        at = torch.tensor([cell], dtype=torch.int32, device=device)
        attend(contexts, projected[:, cell].contiguous().to(device), cache, at, tables, groups)
        seen = mask[cell, : cell + 1].nonzero()[:, 0]
        expected = dense(projected[:, : cell + 1], (text[0], text[1]), prompt_of, seen)
        worst = max(worst, float((contexts.cpu().double() - expected).abs().max()))
    return worst


@pytest.mark.parametrize(("kind", "wrap"), PATTERNS)
def test_every_cell_of_every_kind_of_layer(
    kind: LayerKind, wrap: bool, device: torch.device
) -> None:
    grid = TokenGrid(text=5, height=4, width=3, wrap=wrap)
    assert largest_error(kind, grid, [0, 1], device) < BOUND


@pytest.mark.parametrize("wrap", [False, True])
def test_the_window_wraps_around_a_tall_and_wide_grid(wrap: bool, device: torch.device) -> None:
    """A grid larger than the window: old cells leave the ring, wrapped ones stay."""
    grid = TokenGrid(text=3, height=13, width=12, wrap=wrap)
    chosen = [59, 72, 95, 144, 155]
    assert largest_error(LayerKind.CONVOLUTION, grid, [0], device, cells=chosen) < BOUND


@pytest.mark.parametrize(
    "prompt_of",
    [
        [0],
        [0] * 17,  # more images of a prompt than a group has
        [2, 0, 1, 0, 2, 2],  # in any order
        [0, 0, 1, 1, *[2] * 4],  # guidance: as many images of the empty text as of all others
        [0] * 3 + [1] * 18,
    ],
)
def test_every_layout_of_prompts(prompt_of: list[int], device: torch.device) -> None:
    grid = TokenGrid(text=4, height=1, width=2)
    assert largest_error(LayerKind.ROW, grid, prompt_of, device) < BOUND


@pytest.mark.parametrize(("width", "text"), [(8, 3), (48, 24), (64, 130), (128, 128)])
def test_widths_of_heads_and_lengths_of_texts(width: int, text: int, device: torch.device) -> None:
    """48 and 24 are those of the demo, 64 and 128 of published models; 130 is over one block."""
    grid = TokenGrid(text, height=2, width=1)
    assert largest_error(LayerKind.COLUMN, grid, [0, 0], device, width) < 2 * BOUND


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_lower_precisions(dtype: torch.dtype, bound: float, device: torch.device) -> None:
    grid = TokenGrid(text=20, height=3, width=3)
    error = largest_error(LayerKind.ROW, grid, [0, 1, 1], device, dtype=dtype)
    assert 0 < error < bound


def test_a_row_does_not_depend_on_its_company(device: torch.device) -> None:
    """The same image alone, first and last of a full group, and in another group: equal bits."""
    torch.manual_seed(1)
    grid, width = TokenGrid(text=9, height=2, width=3), 16
    tables = slot_tables(LayerKind.ROW, grid, device)
    text = torch.randn(2, HEADS, 9, width, device=device)
    image = torch.randn(grid.cells, 3 * HEADS * width)

    def contexts_of(prompt_of: list[int], row: int) -> Tensor:
        groups, rows = groups_of(prompt_of, device), len(prompt_of)
        empty = torch.zeros(rows, HEADS, tables.size, width, device=device)
        cache = LayerCache(empty, empty.clone(), text, text)
        contexts = torch.zeros(rows, HEADS * width, device=device)
        for cell in range(grid.cells):
            projected = torch.randn(rows, 3 * HEADS * width)
            projected[row] = image[cell]
            at = torch.tensor([cell], dtype=torch.int32, device=device)
            attend(contexts, projected.to(device), cache, at, tables, groups)
        return contexts[row]

    alone = contexts_of([1], 0)
    for prompt_of, row in (([1] * 16, 15), ([0, 1, 0, 1], 3), ([1] * 17, 16)):
        assert torch.equal(contexts_of(prompt_of, row), alone)


def test_the_largest_value_of_each_row_is_known_afterwards(device: torch.device) -> None:
    """The heads of a row are in different programs; rows of no group stay as they are."""
    torch.manual_seed(2)
    grid, width, prompt_of = TokenGrid(text=4, height=1, width=2), 16, [0] * 17
    tables = slot_tables(LayerKind.ROW, grid, device)
    text = torch.randn(1, HEADS, 4, width, device=device)
    empty = torch.zeros(18, HEADS, tables.size, width, device=device)
    cache = LayerCache(empty, empty.clone(), text, text)
    projected = torch.randn(18, 3 * HEADS * width, device=device)
    projected[5, -3] = torch.nan
    at = torch.zeros(1, dtype=torch.int32, device=device)
    contexts = BoundedRows(
        torch.zeros(18, HEADS * width, device=device), torch.zeros(18, device=device)
    )
    attend(contexts, projected, cache, at, tables, groups_of(prompt_of, device))
    values = contexts.values
    assert torch.equal(contexts.largest, values.abs().amax(1).nan_to_num(torch.inf))
    assert contexts.largest[5] == torch.inf and contexts.largest[17] == 0
    assert (contexts.largest[:17] > 0).all()
