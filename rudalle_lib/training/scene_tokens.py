"""The image tokens of a scene, named: one code for every plain colour, one for every edge.

A cell of 8 x 8 pixels is all ground, all figure, or has an edge in it. A plain cell has the code of
its colour. A cell with an edge has the code of that edge, which is the same in every colour: what
lies on its two sides, the plain cells around it say. So the tokens of a red circle on black are
known to whoever knows red, black and circles, and a small decoder can draw combinations that it has
never seen. `vqgan_codes` teaches these codes to the demo VQ-GAN.

Figures lie on the grid of cells (`scenes.STEP`), so all of them together have few edges.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from rudalle_lib.demo.drawing import PALETTE, figure_mask
from rudalle_lib.demo.scenes import (
    MARGIN,
    PICTURE,
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

GRID = PICTURE // STEP
CODES = 128
"""Size of the vocabulary: room for all plain colours and edges."""
PLAIN = {colour: code for code, colour in enumerate(PALETTE)}
"""The code of a cell with nothing but this colour."""

Cells = NDArray[np.int16]
LEAST_DIFFERENCE = 0.012
"""Mean difference of coverage below which two edges are one."""
_GROUND, _FIGURE = -2, -1  # plain cells of a patch, before their colours are known


def scene_tokens(ground: str, placements: Sequence[Placement]) -> Cells:
    """Tokens of a picture of these figures; int16 [16, 16]."""
    tokens = np.full((GRID, GRID), PLAIN[ground], np.int16)
    for placed in placements:
        patch = _patch(placed.figure.shape, (placed.width, placed.height, placed.angle))
        top, left = placed.top // STEP, placed.left // STEP
        cells = tokens[top : top + patch.shape[0], left : left + patch.shape[1]]
        coloured = np.where(patch == _FIGURE, PLAIN[placed.figure.colour], patch)
        cells[patch != _GROUND] = coloured[patch != _GROUND]
    return tokens


def shows(tokens: Cells, scene: Scene) -> bool:
    """Whether tokens, int [16, 16], are exactly those of a layout of the scene."""
    fitting = [_fitting(tokens, figure) for figure in scene.figures]
    return any(
        keeps_relation(placements, scene.relation)
        and np.array_equal(scene_tokens(scene.ground, placements), tokens)
        for placements in product(*fitting)
    )


def _fitting(tokens: Cells, figure: Figure) -> list[Placement]:
    """The placements of a figure at which the tokens are its own."""
    found = []
    for box in boxes(figure.shape, figure.size):
        patch = _patch(figure.shape, box)
        wanted = np.where(patch == _FIGURE, PLAIN[figure.colour], patch)
        windows = sliding_window_view(tokens, patch.shape)
        same = ((windows == wanted) | (patch == _GROUND)).all((2, 3))
        for row, column in np.argwhere(same):
            left, top = int(column) * STEP + MARGIN, int(row) * STEP + MARGIN
            found.append(Placement(figure, left, top, *box))
    return found


@cache
def edges() -> tuple[NDArray[np.float32], ...]:
    """The edges, as the figure's coverage of their cell: float32 [8, 8], in the order of codes."""
    found: list[NDArray[np.float32]] = []
    for size in SIZES:
        for shape in SHAPES:
            for box in boxes(shape, size):
                for cell in _cells(shape, box).reshape(-1, STEP, STEP):
                    if 0 < cell.mean() < 1 and not any(_alike(cell, edge) for edge in found):
                        found.append(cell)
    return tuple(found)


def _alike(cell: NDArray[np.float32], edge: NDArray[np.float32]) -> bool:
    """Whether no one could tell two edges apart: less than a pixel of difference in all."""
    return float(np.abs(cell - edge).mean()) < LEAST_DIFFERENCE


@cache
def _patch(shape: str, box: Box) -> Cells:
    """Codes of a figure's cells, wherever it lies; int16 [rows, columns]."""
    cells = _cells(shape, box)
    codes = [_code(cell) for cell in cells.reshape(-1, STEP, STEP)]
    return np.asarray(codes, np.int16).reshape(cells.shape[:2])


def _code(cell: NDArray[np.float32]) -> int:
    """The code of a coverage, float32 [8, 8]."""
    if cell.min() == cell.max():
        return _FIGURE if cell.min() == 1 else _GROUND
    return len(PLAIN) + next(i for i, edge in enumerate(edges()) if _alike(cell, edge))


def _cells(shape: str, box: Box) -> NDArray[np.float32]:
    """A figure's coverage, cut into the cells that it touches; float32 [rows, columns, 8, 8]."""
    mask = figure_mask(shape, *box)
    height, width = (-(-(MARGIN + side) // STEP) for side in mask.shape)
    cover = np.zeros((height * STEP, width * STEP), np.float32)
    cover[MARGIN : MARGIN + mask.shape[0], MARGIN : MARGIN + mask.shape[1]] = mask
    return np.ascontiguousarray(cover.reshape(height, STEP, width, STEP).swapaxes(1, 2))
