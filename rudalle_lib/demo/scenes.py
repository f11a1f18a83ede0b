"""Suprematist scenes: what a demo image shows, independent of pixels.

A scene is one figure, or two figures with a relation, on a plain background. Positions and sizes
are on a grid of eight pixels, the size of a token of the demo VQ-GAN. There are therefore few
different edges, and a decoder of a few million parameters can learn them all.

A fifth of the (shape, colour, background) combinations is held out from all training: for each
colour on each background, one of the five shapes is never seen (a Latin-square design). The
measured quality therefore shows composition, not memory.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

SHAPES = ("square", "circle", "triangle", "cross", "bar")
COLOURS = ("red", "blue", "yellow", "green", "orange", "violet", "black", "white")
BACKGROUNDS = ("white", "black", "beige", "grey")
RELATIONS = ("left_of", "right_of", "above", "below")
SIDES = {"small": 32, "medium": 40, "big": 56}
"""Side of a figure's square in pixels, by size."""

SIZES = tuple(SIDES)

IMAGE = 128
"""Side of an image in pixels."""

STEP, MARGIN, GAP = 8, 4, 8
"""Grid of positions, width of the empty border, and minimum gap between two figures, in pixels."""

Combination = tuple[str, str, str]
"""Shape, colour and background."""

Box = tuple[int, int, int]
"""Width and height of a figure's bounding box in pixels, and its angle in degrees (bars only)."""


@dataclass(frozen=True)
class Figure:
    """One figure as a caption describes it."""

    shape: str
    colour: str
    size: str


@dataclass(frozen=True)
class Scene:
    """A background with one figure, or with two and the relation of the first to the second."""

    background: str
    figures: tuple[Figure, ...]
    relation: str | None = None

    def combinations(self) -> tuple[Combination, ...]:
        """Return the (shape, colour, background) of each figure."""
        return tuple((f.shape, f.colour, self.background) for f in self.figures)


@dataclass(frozen=True)
class Placement:
    """Position of a figure: its bounding box in pixels and, for bars, the angle in degrees."""

    figure: Figure
    left: int
    top: int
    width: int
    height: int
    angle: int = 0

    @property
    def centre(self) -> tuple[float, float]:
        """Centre (x, y) in pixels."""
        return self.left + self.width / 2, self.top + self.height / 2


@cache
def all_combinations() -> tuple[Combination, ...]:
    """Return all (shape, colour, background) whose colour differs from the background."""
    return tuple((s, c, b) for s in SHAPES for c in COLOURS for b in BACKGROUNDS if c != b)


@cache
def is_held_out(combination: Combination) -> bool:
    """Return whether a (shape, colour, background) is held out from training (30 of 150)."""
    shape, colour, background = combination
    row, column = COLOURS.index(colour), BACKGROUNDS.index(background)
    return (row + 2 * column + 3) % len(SHAPES) == SHAPES.index(shape)


def has_held_out(scene: Scene) -> bool:
    """Return whether any figure of the scene is a held-out combination."""
    return any(is_held_out(c) for c in scene.combinations())


def random_scene(rng: random.Random, held_out: bool = False, single_share: float = 0.4) -> Scene:
    """Draw a random scene.

    Args:
        rng: source of randomness.
        held_out: if False, use only combinations seen in training. If True, the first figure is a
            held-out combination, drawn uniformly, and the second figure is any combination on the
            same background.
        single_share: probability of a scene with one figure, 0 to 1.
    """
    pool = [c for c in all_combinations() if is_held_out(c) == held_out]
    shape, colour, background = rng.choice(pool)
    first = Figure(shape, colour, rng.choice(SIZES))
    if rng.random() < single_share:
        return Scene(background, (first,))
    partners = [
        (s, c)
        for s, c, b in all_combinations()
        if b == background
        and (s, c) != (shape, colour)
        and (held_out or not is_held_out((s, c, b)))
    ]
    second = Figure(*rng.choice(partners), rng.choice(SIZES))
    figures = (first, second) if held_out or rng.random() < 0.5 else (second, first)
    return Scene(background, figures, rng.choice(RELATIONS))


def place(scene: Scene, rng: random.Random) -> tuple[Placement, ...]:
    """Choose random positions and bar angles that respect relation and gap."""
    while True:
        drawn = [rng.choice(boxes(figure.shape, figure.size)) for figure in scene.figures]
        placements = tuple(
            Placement(figure, _free(rng, width), _free(rng, height), width, height, angle)
            for figure, (width, height, angle) in zip(scene.figures, drawn, strict=True)
        )
        if keeps_relation(placements, scene.relation):
            return placements


def boxes(shape: str, size: str) -> tuple[Box, ...]:
    """Return the boxes in which a figure may be drawn: four for bars, one for other shapes."""
    side = SIDES[size]
    if shape != "bar":
        return ((side, side, 0),)
    length, thickness = side + 8, 16 if size == "big" else 12
    flat, upright = (length, thickness, 0), (thickness, length, 90)
    return flat, (length, length, 45), upright, (length, length, 135)


def _free(rng: random.Random, length: int) -> int:
    """A random position on the grid at which a figure of this length is inside the margins."""
    return rng.randrange(MARGIN, IMAGE - MARGIN - length + 1, STEP)


def keeps_relation(placements: tuple[Placement, ...], relation: str | None) -> bool:
    """Return whether two boxes keep their gap and are clearly in the relation, not diagonal."""
    if relation is None:
        return True
    first, second = placements
    if relation in ("right_of", "below"):
        first, second = second, first
    (x1, y1), (x2, y2) = first.centre, second.centre
    if relation in ("left_of", "right_of"):
        return first.left + first.width + GAP <= second.left and abs(y1 - y2) <= 16
    return first.top + first.height + GAP <= second.top and abs(x1 - x2) <= 16
