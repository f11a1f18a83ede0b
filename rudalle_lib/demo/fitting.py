"""Find the ideal shape that best fits a silhouette, by geometry without a trained network.

The size and position of each candidate shape are computed in closed form from the silhouette's
moments and bounding box. The candidate is then drawn as a distance field and compared with the
silhouette by two measures. The overlap (intersection over union) decides which shape it is. The
flaw, the depth in pixels of their disagreement, decides whether it is well formed. Both are needed:
overlap alone accepts a large shape with a visible bite, flaw alone accepts a small wobbly circle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Field = NDArray[np.float64]

MIN_OVERLAP = 0.95
"""Overlap below which a figure is malformed."""

MIN_MARGIN = 0.03
"""Lead in overlap over the next best shape below which a figure is ambiguous, so malformed."""

MAX_FLAW = 1.75
"""Depth in pixels above which a dent, bump or hole makes a figure malformed."""

PAD = 6
"""Pixels added around the silhouette, into which a candidate may extend."""

EDGE = 0.5
"""Pixels whose centres are at most this far from a candidate's edge count as edge pixels."""

FLAW_RANK = 3
"""The flaw is the depth of the pixel with this rank, counted from the deepest."""

BAR_ASPECT = (2.2, 5.8)
"""Accepted range of a bar's length divided by its thickness. Scenes use 3.3 to 5."""

ARM_RATIO = (0.26, 0.52)
"""Accepted range of the thickness of a cross's beams divided by their length. Scenes use 0.33 to
0.43."""


@dataclass(frozen=True)
class Fit:
    """The ideal shape that fits a silhouette best. Lengths and positions are in pixels.

    Args:
        shape: one of `scenes.SHAPES`.
        side: side of the figure's square, as in `scenes.SIDES`.
        centre: centre (x, y) of the bounding box.
        overlap: intersection over union, 0 to 1.
        margin: lead of `overlap` over the next best shape.
        flaw: depth of the worst disagreement.
    """

    shape: str
    side: float
    centre: tuple[float, float]
    overlap: float
    margin: float
    flaw: float

    @property
    def malformed(self) -> bool:
        """Whether the silhouette matches no ideal shape, or two of them about equally."""
        return self.overlap < MIN_OVERLAP or self.margin < MIN_MARGIN or self.flaw > MAX_FLAW


@dataclass(frozen=True)
class Ideal:
    """A candidate: its measures and the signed distance of each pixel (negative inside)."""

    shape: str
    side: float
    centre: tuple[float, float]
    distance: Field


@dataclass(frozen=True)
class Moments:
    """Area, centroid, second moments and box of a silhouette whose pixels are unit squares."""

    area: float
    x: float
    y: float
    xx: float
    yy: float
    xy: float
    box: tuple[float, float, float, float]  # left, top, right, bottom


IdealsOf = Callable[[Moments, Field, Field], Iterator[Ideal]]
"""Candidates of a shape, from the moments of a silhouette and the coordinates of pixel centres: x,
float64 [1, width], and y, float64 [height, 1]."""


def fit_shape(silhouette: Mask, others: Sequence[IdealsOf] = ()) -> Fit:
    """Fit all ideal shapes to a silhouette; return the best.

    Args:
        silhouette: bool [height, width], not empty.
        others: candidates of other shapes than those of the demo.
    """
    mask = np.pad(silhouette, PAD)
    candidates = _ideals(mask, others)
    ranked = sorted(((_overlap(mask, i), i) for i in candidates), key=lambda pair: -pair[0])
    overlap, best = ranked[0]
    other = max(value for value, ideal in ranked if ideal.shape != best.shape)
    x, y = best.centre
    centre = (float(x - PAD), float(y - PAD))
    return Fit(best.shape, float(best.side), centre, overlap, overlap - other, _flaw(mask, best))


def _differing(mask: Mask, ideal: Ideal) -> Mask:
    """Pixels where silhouette and ideal disagree, except those on the ideal's edge."""
    return (mask ^ (ideal.distance <= 0)) & (np.abs(ideal.distance) > EDGE)


def _overlap(mask: Mask, ideal: Ideal) -> float:
    """Intersection over union."""
    union = np.count_nonzero(mask | (ideal.distance <= 0))
    return 1 - int(np.count_nonzero(_differing(mask, ideal))) / int(union)


def _flaw(mask: Mask, ideal: Ideal) -> float:
    """Depth of the worst disagreement in pixels. The two deepest pixels are ignored as noise."""
    depths = np.sort(np.abs(ideal.distance[_differing(mask, ideal)]))
    return float(depths[-FLAW_RANK]) if len(depths) >= FLAW_RANK else 0.0


def _moments(mask: Mask) -> Moments:
    rows, columns = np.nonzero(mask)
    y, x = rows.mean() + 0.5, columns.mean() + 0.5
    dy, dx = rows + 0.5 - y, columns + 0.5 - x
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    spread = ((dx * dx).mean() + 1 / 12, (dy * dy).mean() + 1 / 12, (dx * dy).mean())
    return Moments(len(rows), x, y, *spread, box)


def _ideals(mask: Mask, others: Sequence[IdealsOf] = ()) -> Iterator[Ideal]:
    """All candidates that the silhouette's proportions allow."""
    moments = _moments(mask)
    height, width = mask.shape
    x = np.arange(width, dtype=np.float64)[None, :] + 0.5  # pixel centres, [1, width]
    y = np.arange(height, dtype=np.float64)[:, None] + 0.5  # [height, 1]
    yield _square(moments, x, y)
    yield _circle(moments, x, y)
    yield _triangle(moments, x, y)
    yield from _cross(moments, x, y)
    for angle in (0, 45, 90, 135):
        yield from _bar(moments, x, y, angle)
    for ideals_of in others:
        yield from ideals_of(moments, x, y)


def _square(m: Moments, x: Field, y: Field) -> Ideal:
    side = m.area**0.5
    distance = _rectangle(x - m.x, y - m.y, side, side)
    return Ideal("square", side, (m.x, m.y), distance)


def _circle(m: Moments, x: Field, y: Field) -> Ideal:
    radius = (m.area / np.pi) ** 0.5
    distance = np.hypot(x - m.x, y - m.y) - radius
    return Ideal("circle", 2 * radius, (m.x, m.y), distance)


def _triangle(m: Moments, x: Field, y: Field) -> Ideal:
    """Upright and as wide as high. The centroid is two thirds down; the flanks have slope 2."""
    side = (2 * m.area) ** 0.5
    top = m.y - side * 2 / 3
    flanks = (2 * np.abs(x - m.x) - (y - top)) / 5**0.5
    distance = np.maximum(flanks, y - top - side)
    return Ideal("triangle", side, (m.x, top + side / 2), distance)


def _cross(m: Moments, x: Field, y: Field) -> Iterator[Ideal]:
    """Two equal beams. The box gives their length, the area (2 side arm - arm^2) their width."""
    left, top, right, bottom = m.box
    side = (right - left + bottom - top) / 2
    arm = side - max(side * side - m.area, 0) ** 0.5
    if ARM_RATIO[0] <= arm / side <= ARM_RATIO[1]:
        dx, dy = x - m.x, y - m.y
        distance = np.minimum(_rectangle(dx, dy, side, arm), _rectangle(dx, dy, arm, side))
        yield Ideal("cross", side, (m.x, m.y), distance)


def _bar(m: Moments, x: Field, y: Field, angle: int) -> Iterator[Ideal]:
    """A long rectangle at an angle in degrees, counter-clockwise on screen."""
    turn = np.deg2rad(angle)
    cos, sin = float(np.cos(turn)), float(-np.sin(turn))  # rows run downwards
    length = (12 * (m.xx * cos * cos + 2 * m.xy * sin * cos + m.yy * sin * sin)) ** 0.5
    thickness = m.area / length
    if not BAR_ASPECT[0] <= length / thickness <= BAR_ASPECT[1]:
        return
    dx, dy = x - m.x, y - m.y
    distance = _rectangle(dx * cos + dy * sin, dy * cos - dx * sin, length, thickness)
    yield Ideal("bar", _bar_side(length, thickness, angle), (m.x, m.y), distance)


def _bar_side(length: float, thickness: float, angle: int) -> float:
    """The side, as in `scenes.SIDES`, of the figure whose bar has this length."""
    if angle in (0, 90):
        return length - 8
    return (length + thickness) / 2**0.5 - 8


def polygon(corners: NDArray[np.float64], x: Field, y: Field) -> Field:
    """Signed distance from a simple polygon, negative inside.

    Args:
        corners: (x, y) of each corner in order, float64 [n, 2].
        x: coordinates of pixel centres, float64 [1, width].
        y: the same, float64 [height, 1].
    """
    distance = np.full(np.broadcast_shapes(x.shape, y.shape), np.inf)
    inside = np.zeros(distance.shape, bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        distance = np.minimum(distance, np.hypot(x - x0 - along * dx, y - y0 - along * dy))
        if dy != 0:
            inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * dx / dy)
    return np.where(inside, -distance, distance)


def _rectangle(dx: Field, dy: Field, width: float, height: float) -> Field:
    """Signed distance from a rectangle at the origin. Beyond the corners it is a lower bound."""
    return np.maximum(np.abs(dx) - width / 2, np.abs(dy) - height / 2)
