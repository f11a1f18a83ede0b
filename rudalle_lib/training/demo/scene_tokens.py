"""Image tokens of a scene: one code per plain colour, and one code per kind of edge.

A cell of 8 x 8 pixels is all background, all figure, or contains an edge. A plain cell has the code
of its colour. A cell with an edge has the code of that edge, which is the same in all colours; the
plain cells around it determine the colours on its two sides. The tokens of a red circle on black
thus follow from red, black and circle, and a small decoder can draw combinations that it has never
seen.
`vqgan_codes` teaches these codes to the demo VQ-GAN.

Figures are aligned with the grid of cells (`scenes.STEP`), so there are few different edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from rudalle_lib.demo.drawing import PALETTE, figure_mask
from rudalle_lib.demo.scenes import (
    IMAGE,
    MARGIN,
    SHAPES,
    SIZES,
    STEP,
    Box,
    Figure,
    Placement,
    Scene,
    boxes,
    keeps_relation,
)

GRID = IMAGE // STEP
"""Cells per side of an image."""

CODES = 128
"""Size of the vocabulary: enough for all plain colours and edges."""

PLAIN = {colour: code for code, colour in enumerate(PALETTE)}
"""Code of a plain cell, by colour."""

Cells = NDArray[np.int16]
"""Codes of cells, int16 [rows, columns]."""

MIN_DIFFERENCE = 0.012
"""Mean difference in coverage below which two edges share a code."""

_BACKGROUND, _FIGURE = -2, -1
"""Codes of plain cells of a patch before their colours are known."""


def scene_tokens(background: str, placements: Sequence[Placement]) -> Cells:
    """Return the tokens of an image of placed figures. int16 [16, 16]."""
    tokens = np.full((GRID, GRID), PLAIN[background], np.int16)
    for placed in placements:
        patch = _patch(placed.figure.shape, (placed.width, placed.height, placed.angle))
        top, left = placed.top // STEP, placed.left // STEP
        cells = tokens[top : top + patch.shape[0], left : left + patch.shape[1]]
        coloured = np.where(patch == _FIGURE, PLAIN[placed.figure.colour], patch)
        cells[patch != _BACKGROUND] = coloured[patch != _BACKGROUND]
    return tokens


def shows(tokens: Cells, scene: Scene) -> bool:
    """Return whether tokens, int [16, 16], are exactly those of some layout of the scene."""
    matching = [_matching(tokens, figure) for figure in scene.figures]
    return any(
        keeps_relation(placements, scene.relation)
        and np.array_equal(scene_tokens(scene.background, placements), tokens)
        for placements in product(*matching)
    )


def _matching(tokens: Cells, figure: Figure) -> list[Placement]:
    """Placements of a figure that match the tokens."""
    found = []
    for box in boxes(figure.shape, figure.size):
        patch = _patch(figure.shape, box)
        expected = np.where(patch == _FIGURE, PLAIN[figure.colour], patch)
        windows = sliding_window_view(tokens, patch.shape)
        same = ((windows == expected) | (patch == _BACKGROUND)).all((2, 3))
        for row, column in np.argwhere(same):
            left, top = int(column) * STEP + MARGIN, int(row) * STEP + MARGIN
            found.append(Placement(figure, left, top, *box))
    return found


@cache
def edges() -> tuple[NDArray[np.float32], ...]:
    """Return all edges as coverage of their cell, float32 [8, 8], in the order of their codes."""
    found: list[NDArray[np.float32]] = []
    for size in SIZES:
        for shape in SHAPES:
            for box in boxes(shape, size):
                for cell in _cells(shape, box).reshape(-1, STEP, STEP):
                    if 0 < cell.mean() < 1 and not any(_same_edge(cell, edge) for edge in found):
                        found.append(cell)
    return tuple(found)


def _same_edge(cell: NDArray[np.float32], edge: NDArray[np.float32]) -> bool:
    """Whether two edges are indistinguishable: they differ by less than one pixel in total."""
    return float(np.abs(cell - edge).mean()) < MIN_DIFFERENCE


@cache
def _patch(shape: str, box: Box) -> Cells:
    """Codes of the cells of a figure, independent of its position; int16 [rows, columns]."""
    cells = _cells(shape, box)
    codes = [_code(cell) for cell in cells.reshape(-1, STEP, STEP)]
    return np.asarray(codes, np.int16).reshape(cells.shape[:2])


def _code(cell: NDArray[np.float32]) -> int:
    """The code of a coverage, float32 [8, 8]."""
    if cell.min() == cell.max():
        return _FIGURE if cell.min() == 1 else _BACKGROUND
    return len(PLAIN) + next(i for i, edge in enumerate(edges()) if _same_edge(cell, edge))


def _cells(shape: str, box: Box) -> NDArray[np.float32]:
    """Coverage of a figure in each cell that it touches; float32 [rows, columns, 8, 8]."""
    mask = figure_mask(shape, *box)
    height, width = (-(-(MARGIN + side) // STEP) for side in mask.shape)
    cover = np.zeros((height * STEP, width * STEP), np.float32)
    cover[MARGIN : MARGIN + mask.shape[0], MARGIN : MARGIN + mask.shape[1]] = mask
    return np.ascontiguousarray(cover.reshape(height, STEP, width, STEP).swapaxes(1, 2))
