"""The classical checker: what a demo image shows, and whether it matches its scene.

It uses no trained network. The background is the most frequent colour of the border. Figures are
the connected pixels that differ from it. The colour of a figure is the median of its interior, its
shape the ideal shape that fits best. The checker is strict: one extra or malformed figure fails the
image. Thresholds tolerate what a good VQ-GAN does to a true image (blur, noise, a tint), no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label, regionprops
from skimage.morphology import erosion, opening

from rudalle_lib.demo.drawing import PALETTE
from rudalle_lib.demo.fitting import Fit, IdealsOf, Mask, fit_shape
from rudalle_lib.demo.scenes import IMAGE, Figure, Scene

Pixels = NDArray[np.float32]

NAMES = tuple(PALETTE)
COLOURS = np.asarray(list(PALETTE.values()), np.float32)
"""Palette colours, float32 [colours, 3], in the order of their names."""

UNKNOWN = "unknown"
"""Name of a colour that is not in the palette, and of a size that is too small or too large."""

PROBLEMS = (
    "wrong_background",
    "wrong_count",
    "malformed",
    "wrong_shape",
    "wrong_colour",
    "wrong_size",
    "wrong_relation",
)
"""All problems that a verdict can list, in this order."""

SIZE_LIMITS = {"small": (22, 36), "medium": (36, 48), "big": (48, 62)}
"""Range of sides in pixels (minimum included, maximum excluded) by size. The limits are half-way
between the sides that scenes use."""

MAX_FIGURES = 8
"""Figures described per image. If there are more, the largest are described."""

BORDER = 3
"""Width in pixels of the border from which the background colour is read."""

CONTRAST = 32.0
"""RGB distance from the background above which a pixel belongs to a figure."""

SPECK_AREA, SPECK_CONTRAST = 12, 80.0
"""Area in pixels and RGB distance; a region below both is not a figure."""

COLOUR_TOLERANCE = 70.0
"""Maximum RGB distance between a colour and its palette colour."""

COLOUR_LEAD = 0.6
"""Maximum ratio of the distances to the nearest and the second nearest palette colour."""

BLEND_TOLERANCE = 60.0
"""Maximum RGB distance between a pixel and a blend of its figure and the background."""

PATCH = np.ones((2, 2), np.uint8)
"""Smallest patch of foreign colour that counts; less is noise."""

EDGE_WIDTH = 3
"""Distance in pixels from a region's edge within which antialiasing and blur may tint pixels."""


@dataclass(frozen=True)
class FoundFigure:
    """A figure as it appears in the image.

    Args:
        shape: one of `scenes.SHAPES`, or the name of another ideal.
        colour: a name in the palette, or `UNKNOWN`.
        size: one of `scenes.SIZES`, or `UNKNOWN`.
        centre: centre (x, y) of the bounding box in pixels.
        area: number of pixels.
        fit: overlap with the ideal shape, 0 to 1.
        flaw: depth in pixels of the worst dent, bump or hole.
        malformed: whether no ideal shape fits, or the edge of the image cuts the figure off.
    """

    shape: str
    colour: str
    size: str
    centre: tuple[float, float]
    area: int
    fit: float
    flaw: float
    malformed: bool


@dataclass(frozen=True)
class _Region:
    """Connected pixels: a mask of their bounding box, and the position of its top left corner."""

    mask: Mask
    left: int
    top: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of the bounding box."""
        height, width = self.mask.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def _colour_name(colour: Pixels) -> str:
    """The palette colour that is clearly the nearest, or `UNKNOWN`."""
    distance = np.sqrt(((COLOURS - colour) ** 2).sum(-1))
    first, second = np.argsort(distance)[:2]
    limit = min(COLOUR_TOLERANCE, COLOUR_LEAD * distance[second])
    return NAMES[first] if distance[first] <= limit else UNKNOWN


@dataclass(frozen=True)
class Description:
    """What an image shows. At most `MAX_FIGURES` figures, the largest first."""

    background: str
    figures: tuple[FoundFigure, ...]


@dataclass(frozen=True)
class Verdict:
    """Whether an image shows its scene, and its problems: names in `PROBLEMS`, without repeats."""

    ok: bool
    problems: tuple[str, ...]


def describe(
    image: NDArray[np.uint8],
    ideals: Sequence[IdealsOf] = (),
) -> Description:
    """Describe an image.

    Args:
        image: uint8 [128, 128, 3].
        ideals: other shapes than those of the demo; see `fitting.fit_shape`.

    Raises:
        ValueError: if the array has another shape or dtype.
    """
    if image.shape != (IMAGE, IMAGE, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"expected a uint8 image of {IMAGE} x {IMAGE} x 3, "
            f"found {image.dtype} {list(image.shape)}: resize or convert it first"
        )
    pixels = image.astype(np.float32)
    background = _background(pixels)
    regions = sorted(_regions(pixels, background), key=lambda region: -region.mask.sum())
    figures = (_figure(region, pixels, background, ideals) for region in regions[:MAX_FIGURES])
    return Description(_colour_name(background), tuple(figures))


def check(
    image: NDArray[np.uint8],
    scene: Scene,
    ideals: Sequence[IdealsOf] = (),
) -> Verdict:
    """Compare an image with the scene that it should show. Arguments as in `describe`.

    Raises:
        ValueError: if the array has another shape or dtype.
    """
    found = describe(image, ideals)
    problems = set() if found.background == scene.background else {"wrong_background"}
    if len(found.figures) == len(scene.figures):
        problems |= _compare(found.figures, scene)
    else:
        problems.add("wrong_count")
        problems |= {"malformed" for figure in found.figures if figure.malformed}
    return Verdict(not problems, tuple(name for name in PROBLEMS if name in problems))


def _compare(found: tuple[FoundFigure, ...], scene: Scene) -> set[str]:
    """Problems of the figures, matched with those of the scene in the order with fewer problems."""
    orders = (found, found[::-1]) if len(found) == 2 else (found,)
    candidates = [_problems_in_order(order, scene) for order in orders]
    fewest: list[str] = min(candidates, key=len)
    return set(fewest)


def _problems_in_order(found: tuple[FoundFigure, ...], scene: Scene) -> list[str]:
    pairs = zip(found, scene.figures, strict=True)
    names = [name for pair in pairs for name in _differences(*pair)]
    if scene.relation is not None and _relation(found[0], found[1]) != scene.relation:
        names.append("wrong_relation")
    return names


def _differences(found: FoundFigure, wanted: Figure) -> list[str]:
    problems = {
        "malformed": found.malformed,
        "wrong_shape": found.shape != wanted.shape,
        "wrong_colour": found.colour != wanted.colour,
        "wrong_size": found.size != wanted.size,
    }
    return [name for name, holds in problems.items() if holds]


def _relation(first: FoundFigure, second: FoundFigure) -> str:
    """Position of the first figure relative to the second, by the larger difference of centres."""
    dx, dy = (a - b for a, b in zip(first.centre, second.centre, strict=True))
    if abs(dx) > abs(dy):
        return "left_of" if dx < 0 else "right_of"
    return "above" if dy < 0 else "below"


def _background(pixels: Pixels) -> Pixels:
    """RGB of the background: the median of the most frequent colour of the border."""
    border = pixels[_frame(BORDER)]  # [n, 3]
    distance = ((border[:, None] - COLOURS) ** 2).sum(-1)  # [n, colours]
    nearest = distance.argmin(-1)
    return np.median(border[nearest == np.bincount(nearest).argmax()], axis=0)


def _frame(width: int) -> Mask:
    """The outermost pixels of an image."""
    frame = np.ones((IMAGE, IMAGE), bool)
    frame[width:-width, width:-width] = False
    return frame


def _regions(pixels: Pixels, background: Pixels) -> Iterator[_Region]:
    """Connected regions that differ from the background, without faint specks."""
    contrast = np.sqrt(((pixels - background) ** 2).sum(-1))  # [height, width]
    for found in regionprops(label(contrast > CONTRAST, connectivity=2)):
        rows, columns = found.slice
        strongest = contrast[found.slice][found.image].max()
        if found.area >= SPECK_AREA or strongest >= SPECK_CONTRAST:
            yield _Region(found.image, columns.start, rows.start)


def _figure(
    region: _Region,
    pixels: Pixels,
    background: Pixels,
    ideals: Sequence[IdealsOf],
) -> FoundFigure:
    """Name the colour, shape and size of one region."""
    crop = pixels[region.slices]
    interior = _interior(region.mask)
    colour = np.median(crop[interior if interior.any() else region.mask], axis=0)
    silhouette = region.mask & _covered(crop, background, colour, interior)
    fit = fit_shape(silhouette if silhouette.any() else region.mask, ideals)
    x, y = fit.centre
    return FoundFigure(
        shape=fit.shape,
        colour=_colour_name(colour),
        size=_size_name(fit),
        centre=(x + region.left, y + region.top),
        area=int(np.count_nonzero(silhouette)),
        fit=fit.overlap,
        flaw=fit.flaw,
        malformed=fit.malformed or bool(silhouette[_frame(1)[region.slices]].any()),
    )


def _interior(blob: Mask) -> Mask:
    """Pixels of a region that are more than `EDGE_WIDTH` from its edge."""
    window = np.ones((2 * EDGE_WIDTH + 1,) * 2, np.uint8)
    return erosion(np.pad(blob, EDGE_WIDTH), window)[EDGE_WIDTH:-EDGE_WIDTH, EDGE_WIDTH:-EDGE_WIDTH]


def _covered(crop: Pixels, background: Pixels, colour: Pixels, interior: Mask) -> Mask:
    """Pixels at least half covered by the figure. A patch of foreign colour inside is a hole."""
    span, offset = colour - background, crop - background
    cover = np.clip(offset @ span / max(float(span @ span), 1.0), 0, 1)  # [height, width]
    foreign = ((offset - cover[..., None] * span) ** 2).sum(-1) > BLEND_TOLERANCE**2
    return (cover >= 0.5) & ~opening(foreign & interior, PATCH)


def _size_name(fit: Fit) -> str:
    names = [name for name, (low, high) in SIZE_LIMITS.items() if low <= fit.side < high]
    return names[0] if names else UNKNOWN
