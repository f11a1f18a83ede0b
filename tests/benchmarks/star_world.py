"""What a user of the demo might add to it: stars, and a yellow background.

The demo's decoder has drawn neither. Its VQ-GAN has codes for both: many edges of stars are those
of other figures, and yellow is a colour of figures. A star has eight points: a square and the same
square on its corner, whose corners lie on the grid of cells. A fifth of the new
(shape, colour, background) combinations is held out, as in the demo's own world, and so are those
that the demo held out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rudalle_lib.demo import drawing, fitting
from rudalle_lib.demo.checker import Verdict
from rudalle_lib.demo.checker import check as check_figures
from rudalle_lib.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    SIDES,
    SIZES,
    STEP,
    Combination,
    Figure,
    Placement,
    Scene,
    is_held_out,
    place,
)
from rudalle_lib.training.demo.scene_tokens import PLAIN

STAR, YELLOW = "star", "yellow"

INNER = {32: 24, 40: 24, 56: 40}
"""Side of the upright square of a star by its own side, in pixels."""

Corners = list[tuple[float, float]]


def star_corners(side: float, inner: float) -> Corners:
    """The 16 corners (x, y) of a star in a square of this side, in order."""
    tip, square, notch = side / 2, inner / 2, (side - inner) / 2
    quarter = [(0.0, -tip), (notch, -square), (square, -square), (square, -notch)]
    turned = [*quarter]
    for _ in range(3):
        quarter = [(-y, x) for x, y in quarter]
        turned += quarter
    return [(tip + x, tip + y) for x, y in turned]


@lru_cache(maxsize=64)
def mask(
    shape: str, width: int, height: int, angle: int = 0, scale: int = 1
) -> NDArray[np.float32]:
    """Return how much of each pixel a figure covers; as `drawing.figure_mask`, of stars too."""
    if shape != STAR:
        return drawing.figure_mask(shape, width, height, angle, scale)
    return drawing.polygon_mask([star_corners(width, INNER[width])], width, height, scale)


def star_ideals(m: fitting.Moments, x: fitting.Field, y: fitting.Field) -> Iterator[fitting.Ideal]:
    """The stars of the same area at the same place, for the checker."""
    for outer, inner in INNER.items():
        share = inner / outer
        side = (m.area / (share**2 + (1 - share) ** 2)) ** 0.5
        corners = np.asarray(star_corners(side, share * side)) + (m.x - side / 2, m.y - side / 2)
        yield fitting.Ideal(STAR, side, (m.x, m.y), fitting.polygon(corners, x, y))


def draw(scene: Scene, rng: random.Random) -> NDArray[np.uint8]:
    """Lay out and draw a scene. Returns uint8 [128, 128, 3]."""
    return drawing.draw_placements(scene.background, place(scene, rng), draw=mask)


def check(image: NDArray[np.uint8], scene: Scene) -> Verdict:
    """Compare an image, uint8 [128, 128, 3], with the scene that it should show."""
    return check_figures(image, scene, ideals=(star_ideals,))


Encode = Callable[[NDArray[np.uint8]], NDArray[np.int64]]
"""Turns images, uint8 [N, 128, 128, 3], into tokens, int64 [N, 16, 16]."""


def star_tokens(size: str, encode: Encode) -> NDArray[np.int64]:
    """The tokens of a star in all colours, on all backgrounds, at one place.

    Returns:
        int64 [pairs of colours, cells]; those of plain figure are -1, those of plain background -2.
    """
    side, corner = SIDES[size], 20
    pairs = [(c, b) for c in COLOURS for b in (*BACKGROUNDS, YELLOW) if c != b]
    stars = [Placement(Figure(STAR, c, size), corner, corner, side, side) for c, _ in pairs]
    images = [
        drawing.draw_placements(b, (star,), draw=mask)
        for (_, b), star in zip(pairs, stars, strict=True)
    ]
    first, last = corner // STEP, -(-(corner + side) // STEP)
    tokens = encode(np.stack(images))[:, first:last, first:last].reshape(len(pairs), -1).copy()
    for cells, (colour, background) in zip(tokens, pairs, strict=True):
        cells[cells == PLAIN[colour]] = -1
        cells[cells == PLAIN[background]] = -2
    return tokens


def regularity(encode: Encode) -> float:
    """How alike the tokens of equal stars in different colours are.

    Returns:
        The share of cells with an edge whose token is the one that most stars of that size have
        there.
    """
    cells = [cell for size in SIZES for cell in star_tokens(size, encode).T]
    edges = [cell for cell in cells if not (cell == cell[0]).all() or cell[0] >= 0]
    most = [np.unique(edge, return_counts=True)[1].max() for edge in edges]
    return float(np.mean(most) / len(edges[0]))


def new_combinations() -> list[Combination]:
    """All (shape, colour, background) with a star or on yellow."""
    stars = [(STAR, c, b) for c in COLOURS for b in (*BACKGROUNDS, YELLOW) if c != b]
    return stars + [(s, c, YELLOW) for s in SHAPES for c in COLOURS if c != YELLOW]


def is_unseen(combination: Combination) -> bool:
    """Whether a combination, new or old, is held out from all training."""
    shape, colour, background = combination
    row = COLOURS.index(colour)
    if shape == STAR:
        return (row + 2 * (*BACKGROUNDS, YELLOW).index(background)) % 5 == 0
    if background == YELLOW:
        return (row + 2 * SHAPES.index(shape) + 1) % 5 == 0
    return is_held_out(combination)


def random_scene(rng: random.Random, unseen: bool = False, single_share: float = 0.4) -> Scene:
    """Draw a random scene with something new in it.

    Args:
        rng: source of randomness.
        unseen: if True, one figure is a new combination that is held out; if False, none is.
        single_share: probability of a scene with one figure, 0 to 1.
    """
    pool = [c for c in new_combinations() if is_unseen(c) == unseen]
    shape, colour, background = rng.choice(pool)
    first = Figure(shape, colour, rng.choice(SIZES))
    if rng.random() < single_share:
        return Scene(background, (first,))
    partners = [
        (s, c)
        for s in (*SHAPES, STAR)
        for c in COLOURS
        if c != background
        and (s, c) != (shape, colour)
        and (unseen or not is_unseen((s, c, background)))
    ]
    second = Figure(*rng.choice(partners), rng.choice(SIZES))
    figures = (first, second) if rng.random() < 0.5 else (second, first)
    return Scene(background, figures, rng.choice(RELATIONS))
