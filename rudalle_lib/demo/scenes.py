"""Suprematist scenes: what a demo picture shows, before a pixel is drawn.

A scene is one figure, or two with a relation, on a plain ground. Positions and sizes lie on a grid
of eight pixels, a token of the demo VQ-GAN, so that a decoder of a few million parameters can learn
every edge it will have to draw, and a square is a matter of counting whole tokens.
A fifth of the (shape, colour, ground) combinations is held out from all training: for every colour
on every ground one of the five shapes has never been seen (a Latin-square design), so that the
figures in the README measure composition, not memory.
"""

import random
from dataclasses import dataclass
from functools import cache

SHAPES = ("square", "circle", "triangle", "cross", "bar")
COLOURS = ("red", "blue", "yellow", "green", "orange", "violet", "black", "white")
GROUNDS = ("white", "black", "beige", "grey")
RELATIONS = ("left_of", "right_of", "above", "below")
SIDES = {"small": 32, "medium": 40, "big": 56}
"""Side of a figure's square in pixels, by size."""
SIZES = tuple(SIDES)

PICTURE = 128
"""Side of a picture in pixels."""
STEP, MARGIN, GAP = 8, 4, 8
"""Grid of positions, border left free, and the least distance of two figures, in pixels."""

Combination = tuple[str, str, str]
Box = tuple[int, int, int]
"""Width and height of a figure's bounding box in pixels, and for bars the angle in degrees."""


@dataclass(frozen=True)
class Figure:
    """One figure as a caption names it."""

    shape: str
    colour: str
    size: str


@dataclass(frozen=True)
class Scene:
    """A ground with one figure, or with two figures and the relation of the first to the second."""

    ground: str
    figures: tuple[Figure, ...]
    relation: str | None = None

    def combinations(self) -> tuple[Combination, ...]:
        """The (shape, colour, ground) of each figure."""
        return tuple((f.shape, f.colour, self.ground) for f in self.figures)


@dataclass(frozen=True)
class Placement:
    """Where a figure lies: its bounding box in pixels and, for bars, the angle in degrees."""

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
    """Every (shape, colour, ground) that can be seen: the colour differs from the ground."""
    return tuple((s, c, g) for s in SHAPES for c in COLOURS for g in GROUNDS if c != g)


@cache
def is_held_out(combination: Combination) -> bool:
    """Whether a (shape, colour, ground) is kept out of all training (30 of 150)."""
    shape, colour, ground = combination
    row, column = COLOURS.index(colour), GROUNDS.index(ground)
    return (row + 2 * column + 3) % len(SHAPES) == SHAPES.index(shape)


def has_held_out(scene: Scene) -> bool:
    """Whether any figure of the scene is a held-out combination."""
    return any(is_held_out(c) for c in scene.combinations())


def random_scene(rng: random.Random, held_out: bool = False, single_share: float = 0.4) -> Scene:
    """Draw a scene: of seen combinations only, or with a held-out combination as its first figure.

    Held-out scenes are stratified by drawing the combination itself uniformly; their second figure
    may be any combination on the same ground.
    """
    pool = [c for c in all_combinations() if is_held_out(c) == held_out]
    shape, colour, ground = rng.choice(pool)
    first = Figure(shape, colour, rng.choice(SIZES))
    if rng.random() < single_share:
        return Scene(ground, (first,))
    partners = [
        (s, c)
        for s, c, g in all_combinations()
        if g == ground and (s, c) != (shape, colour) and (held_out or not is_held_out((s, c, g)))
    ]
    second = Figure(*rng.choice(partners), rng.choice(SIZES))
    figures = (first, second) if held_out or rng.random() < 0.5 else (second, first)
    return Scene(ground, figures, rng.choice(RELATIONS))


def place(scene: Scene, rng: random.Random) -> tuple[Placement, ...]:
    """Lay a scene out: bar angles and positions that respect relation and gap."""
    while True:
        drawn = [rng.choice(boxes(figure.shape, figure.size)) for figure in scene.figures]
        placements = tuple(
            Placement(figure, _free(rng, width), _free(rng, height), width, height, angle)
            for figure, (width, height, angle) in zip(scene.figures, drawn, strict=True)
        )
        if keeps_relation(placements, scene.relation):
            return placements


def boxes(shape: str, size: str) -> tuple[Box, ...]:
    """The boxes in which a figure of this shape and size may be drawn; bars lie at any of four."""
    side = SIDES[size]
    if shape != "bar":
        return ((side, side, 0),)
    length, thickness = side + 8, 16 if size == "big" else 12
    flat, upright = (length, thickness, 0), (thickness, length, 90)
    return flat, (length, length, 45), upright, (length, length, 135)


def _free(rng: random.Random, length: int) -> int:
    """A position on the grid at which a figure of this length stays inside the margins."""
    return rng.randrange(MARGIN, PICTURE - MARGIN - length + 1, STEP)


def keeps_relation(placements: tuple[Placement, ...], relation: str | None) -> bool:
    """Whether two boxes keep their gap and stand clearly in the relation, not diagonally."""
    if relation is None:
        return True
    first, second = placements
    if relation in ("right_of", "below"):
        first, second = second, first
    (x1, y1), (x2, y2) = first.centre, second.centre
    if relation in ("left_of", "right_of"):
        return first.left + first.width + GAP <= second.left and abs(y1 - y2) <= 16
    return first.top + first.height + GAP <= second.top and abs(x1 - x2) <= 16
