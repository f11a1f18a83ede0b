"""Renders of demo scenes for the tests of the checker."""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray
from skimage.filters import gaussian

from rudalle_lib.demo.drawing import PALETTE, draw_placements
from rudalle_lib.demo.scenes import SIZES, Figure, Placement, Scene, all_combinations, place

Pixels = NDArray[np.uint8]


def degraded(image: Pixels, noise: np.random.Generator, sigma: float = 0.7) -> Pixels:
    """Degrade an image as a reconstruction does: a slight blur, a tint and noise."""
    soft = gaussian(image.astype(np.float64), sigma, channel_axis=2, preserve_range=True)
    soft += noise.uniform(-12, 12, 3) + noise.normal(0, 5, image.shape)
    return np.clip(np.rint(soft), 0, 255).astype(np.uint8)


def single_figure(rng: random.Random, shape: str | None = None) -> tuple[Scene, Placement, Pixels]:
    """A random scene with one figure, its layout and its image."""
    choices = [c for c in all_combinations() if shape in (None, c[0])]
    kind, colour, background = rng.choice(choices)
    scene = Scene(background, (Figure(kind, colour, rng.choice(SIZES)),))
    (placed,) = place(scene, rng)
    return scene, placed, draw_placements(background, (placed,))


def erase(image: Pixels, x: float, y: float, width: float, height: float, background: str) -> None:
    """Paint a rectangle of background over an image."""
    rows, columns = slice(round(y), round(y + height)), slice(round(x), round(x + width))
    image[rows, columns] = PALETTE[background]
