"""Drawing Suprematist scenes: antialiased figures on a plain ground, 128 x 128 pixels.

A figure's mask is drawn once at eight times its size and reduced (box filter), then reused:
positions are whole pixels, so every picture is exact and takes microseconds.
"""

import random
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from rudalle_lib.demo.scenes import PICTURE, Placement, Scene, place

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
"""RGB of every colour and ground."""

OVERSAMPLING = 8


def draw_scene(scene: Scene, rng: random.Random) -> NDArray[np.uint8]:
    """Lay out and draw a scene; uint8 [128, 128, 3]."""
    return draw_placements(scene.ground, place(scene, rng))


def draw_placements(
    ground: str, placements: tuple[Placement, ...], scale: int = 1
) -> NDArray[np.uint8]:
    """Draw placed figures on a ground; uint8 [128 * scale, 128 * scale, 3]."""
    picture = np.empty((PICTURE * scale, PICTURE * scale, 3), np.float32)
    picture[:] = PALETTE[ground]
    for placed in placements:
        left, top = placed.left * scale, placed.top * scale
        cover = figure_mask(placed.figure.shape, placed.width, placed.height, placed.angle, scale)
        box = picture[top : top + cover.shape[0], left : left + cover.shape[1]]
        colour = np.asarray(PALETTE[placed.figure.colour], np.float32)
        box += cover[..., None] * (colour - box)
    return np.rint(picture).astype(np.uint8)


@lru_cache(maxsize=512)
def figure_mask(
    shape: str, width: int, height: int, angle: int = 0, scale: int = 1
) -> NDArray[np.float32]:
    """Coverage of a figure's bounding box; float32 [height * scale, width * scale] in [0, 1]."""
    fine = OVERSAMPLING * scale
    mask = Image.new("L", (width * fine, height * fine))
    pen = ImageDraw.Draw(mask)
    if shape == "circle":
        pen.ellipse((0, 0, width * fine - 1, height * fine - 1), fill=255)
    else:
        for outline in outlines(shape, width, height, angle):
            _fill(pen, [(x * fine, y * fine) for x, y in outline])
    return np.asarray(mask.reduce(OVERSAMPLING), np.float32) / np.float32(255)


def _fill(pen: ImageDraw.ImageDraw, outline: list[tuple[float, float]]) -> None:
    """Fill a polygon; upright rectangles exactly, where Pillow's polygons reach a pixel too far."""
    (x0, y0), (x1, y1) = outline[0], outline[2]
    if outline[1::2] == [(x1, y0), (x0, y1)]:
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), fill=255)
    else:
        pen.polygon([(x - 0.5, y - 0.5) for x, y in outline], fill=255)


def outlines(
    shape: str, width: float, height: float, angle: int = 0
) -> list[list[tuple[float, float]]]:
    """Corner points (x, y) of the polygons that make a figure within its bounding box.

    Triangles stand upright, twice as steep as wide; a cross is two beams; tilted bars run corner to
    corner at 45 or 135 degrees.
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
    """Thickness of a cross's beams in pixels, such that they lie on the grid."""
    return {32: 12, 40: 16, 56: 24}.get(side, side * 2 // 5)


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _tilted_bar(side: float, rising: bool) -> list[tuple[float, float]]:
    """A bar at 45 degrees in a square box; its end edges span `cut` pixels on each axis."""
    cut = 12 if side >= 64 else 8
    points = [(0, side - cut), (side - cut, 0), (side, cut), (cut, side)]
    return points if rising else [(side - x, y) for x, y in points]
