"""Draw Suprematist scenes: antialiased figures on a plain background, 128 x 128 pixels.

Each figure's mask is drawn once at eight times its size, reduced with a box filter, and cached.
Positions are whole pixels, so the cached mask fits everywhere and drawing takes microseconds.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from rudalle_lib.demo.scenes import IMAGE, Placement, Scene, place

PALETTE = {
    "red": (204, 32, 38),
    "blue": (28, 72, 172),
    "yellow": (246, 206, 40),
    "green": (24, 128, 72),
    "orange": (238, 124, 26),
    "violet": (124, 52, 150),
    "black": (22, 20, 22),
    "white": (244, 243, 238),
    "beige": (214, 190, 150),
    "grey": (138, 140, 144),
}
"""RGB values (0 to 255) of all colours and backgrounds."""

OVERSAMPLING = 8
"""Subpixels per pixel on each axis when a mask is drawn."""

Draw = Callable[[str, int, int, int, int], NDArray[np.float32]]
"""Draws the mask of a shape; arguments and result are those of `figure_mask`."""


def draw_scene(scene: Scene, rng: random.Random) -> NDArray[np.uint8]:
    """Lay out and draw a scene. Returns uint8 [128, 128, 3]."""
    return draw_placements(scene.background, place(scene, rng))


def draw_placements(
    background: str,
    placements: tuple[Placement, ...],
    scale: int = 1,
    draw: Draw | None = None,
) -> NDArray[np.uint8]:
    """Draw placed figures on a background.

    Args:
        background: a name in `PALETTE`.
        placements: the figures.
        scale: factor by which the image is enlarged.
        draw: draws the mask of a figure, of other shapes too; None is `figure_mask`.

    Returns:
        The image, uint8 [128 * scale, 128 * scale, 3].
    """
    draw = draw or figure_mask
    image = np.empty((IMAGE * scale, IMAGE * scale, 3), np.float32)
    image[:] = PALETTE[background]
    for placed in placements:
        left, top = placed.left * scale, placed.top * scale
        cover = draw(placed.figure.shape, placed.width, placed.height, placed.angle, scale)
        box = image[top : top + cover.shape[0], left : left + cover.shape[1]]
        colour = np.asarray(PALETTE[placed.figure.colour], np.float32)
        box += cover[..., None] * (colour - box)
    return np.rint(image).astype(np.uint8)


@lru_cache(maxsize=512)
def figure_mask(
    shape: str, width: int, height: int, angle: int = 0, scale: int = 1
) -> NDArray[np.float32]:
    """Return how much of each pixel of its bounding box a figure covers.

    Args:
        shape: one of `scenes.SHAPES`.
        width: width of the bounding box in pixels.
        height: height of the bounding box in pixels.
        angle: of a bar, in degrees.
        scale: factor by which the figure is enlarged.

    Returns:
        Coverage, float32 [height * scale, width * scale] in [0, 1].
    """
    if shape != "circle":
        return polygon_mask(outlines(shape, width, height, angle), width, height, scale)
    fine = OVERSAMPLING * scale
    mask = Image.new("L", (width * fine, height * fine))
    ImageDraw.Draw(mask).ellipse((0, 0, width * fine - 1, height * fine - 1), fill=255)
    return np.asarray(mask.reduce(OVERSAMPLING), np.float32) / np.float32(255)


def polygon_mask(
    outlines: list[list[tuple[float, float]]], width: int, height: int, scale: int = 1
) -> NDArray[np.float32]:
    """Return how much of each pixel polygons cover, together; as `figure_mask`.

    Args:
        outlines: corners (x, y) of each polygon in pixels.
        width: width of the bounding box in pixels.
        height: height of the bounding box in pixels.
        scale: factor by which the figure is enlarged.
    """
    fine = OVERSAMPLING * scale
    mask = Image.new("L", (width * fine, height * fine))
    pen = ImageDraw.Draw(mask)
    for outline in outlines:
        _fill(pen, [(x * fine, y * fine) for x, y in outline])
    return np.asarray(mask.reduce(OVERSAMPLING), np.float32) / np.float32(255)


def _fill(pen: ImageDraw.ImageDraw, outline: list[tuple[float, float]]) -> None:
    """Fill a polygon. Upright rectangles are exact; Pillow's polygons extend one pixel too far."""
    (x0, y0), (x1, y1) = outline[0], outline[2]
    if outline[1::2] == [(x1, y0), (x0, y1)]:
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), fill=255)
    else:
        pen.polygon([(x - 0.5, y - 0.5) for x, y in outline], fill=255)


def outlines(
    shape: str, width: float, height: float, angle: int = 0
) -> list[list[tuple[float, float]]]:
    """Return the corners (x, y) of the polygons that form a figure within its bounding box.

    Triangles are upright and isosceles, as high as wide. A cross consists of two beams. Tilted bars
    run from corner to corner at 45 or 135 degrees.
    """
    if shape == "triangle":
        return [[(width / 2, 0), (width, height), (0, height)]]
    if shape == "cross":
        arm = cross_arm(int(width))
        near, far = (width - arm) / 2, (width + arm) / 2
        return [_rectangle(near, 0, far, height), _rectangle(0, near, width, far)]
    if shape == "bar" and angle in (45, 135):
        return [_tilted_bar(width, rising=angle == 45)]
    return [_rectangle(0, 0, width, height)]


def cross_arm(side: int) -> int:
    """Return the thickness of a cross's beams in pixels, aligned with the grid."""
    return {32: 12, 40: 16, 56: 24}.get(side, side * 2 // 5)


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _tilted_bar(side: float, rising: bool) -> list[tuple[float, float]]:
    """A bar at 45 degrees in a square box. Its end edges span `cut` pixels on each axis."""
    cut = 12 if side >= 64 else 8
    points = [(0, side - cut), (side - cut, 0), (side, cut), (cut, side)]
    return points if rising else [(side - x, y) for x, y in points]
