"""The classical checker: what a demo picture shows, and whether that is what its scene asked for.

No trained network: the ground is the most frequent colour of the border, figures are the connected
pixels that differ from it, their colour is the median of their interior, and their shape the ideal
shape that fits best. It is strict: one figure too many or one malformed figure fails the picture.
Thresholds leave room for what a good VQ-GAN does to a true picture (blur, noise, a tint), not more.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label, regionprops
from skimage.morphology import erosion, opening

from rudalle_lib.demo.drawing import PALETTE
from rudalle_lib.demo.fitting import Fit, Mask, fit_shape
from rudalle_lib.demo.scenes import PICTURE, Figure, Scene

Pixels = NDArray[np.float32]

UNKNOWN = "unknown"
"""The name of a colour that is no palette colour, and of a size that is too small or too large."""
PROBLEMS = (
    "wrong_ground",
    "wrong_count",
    "malformed",
    "wrong_shape",
    "wrong_colour",
    "wrong_size",
    "wrong_relation",
)
"""Everything that a verdict can complain about, in the order in which it does."""
SIZE_LIMITS = {"small": (22, 36), "medium": (36, 48), "big": (48, 62)}
"""Sides in pixels, from and below, by size: half-way between the sides that scenes use."""

MOST_FIGURES = 8  # more are a swarm: its largest are described
BORDER = 3
CONTRAST = 32.0  # RGB distance from the ground at which a figure starts
SPECK_AREA, SPECK_CONTRAST = 12, 80.0  # smaller and fainter than this is no figure
COLOUR_TOLERANCE = 70.0  # how far a colour may be from the palette's
COLOUR_LEAD = 0.6  # how much nearer it must be than to the next colour of the palette
BLEND_TOLERANCE = 60.0  # how far a pixel may be from a blend of its figure and the ground
PATCH = np.ones((2, 2), np.uint8)  # the least that a foreign colour covers; less is noise
EDGE_WIDTH = 3  # pixels from a region's rim that antialiasing and blur may tint

_NAMES = tuple(PALETTE)
_COLOURS = np.asarray([PALETTE[name] for name in _NAMES], np.float32)


@dataclass(frozen=True)
class FoundFigure:
    """A figure as the picture shows it.

    `centre` is the centre (x, y) of its box and `area` its size, in pixels; `fit` is its overlap
    with the ideal shape (0 to 1), `flaw` the depth in pixels of its worst dent, bump or hole.
    `malformed` figures are too far from every ideal shape, or cut off by the picture's edge.
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
    """Connected pixels: a mask of their bounding box, and where its top left corner lies."""

    mask: Mask
    left: int
    top: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of the bounding box."""
        height, width = self.mask.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


@dataclass(frozen=True)
class Description:
    """What a picture shows; the largest figure first, and of a swarm only the largest few."""

    ground: str
    figures: tuple[FoundFigure, ...]


@dataclass(frozen=True)
class Verdict:
    """Whether a picture shows its scene, and what is wrong: names of PROBLEMS, each once."""

    ok: bool
    problems: tuple[str, ...]


def describe(picture: NDArray[np.uint8]) -> Description:
    """Describe a picture, uint8 [128, 128, 3]; ValueError if it is anything else."""
    if picture.shape != (PICTURE, PICTURE, 3) or picture.dtype != np.uint8:
        raise ValueError(
            f"expected a uint8 picture of {PICTURE} x {PICTURE} x 3, "
            f"found {picture.dtype} {list(picture.shape)}: resize or convert it first"
        )
    pixels = picture.astype(np.float32)
    ground = _ground(pixels)
    regions = sorted(_regions(pixels, ground), key=lambda region: -region.mask.sum())
    figures = (_figure(region, pixels, ground) for region in regions[:MOST_FIGURES])
    return Description(_colour_name(ground), tuple(figures))


def check(picture: NDArray[np.uint8], scene: Scene) -> Verdict:
    """Compare a picture, uint8 [128, 128, 3], with the scene it should show."""
    found = describe(picture)
    problems = set() if found.ground == scene.ground else {"wrong_ground"}
    if len(found.figures) == len(scene.figures):
        problems |= _compare(found.figures, scene)
    else:
        problems.add("wrong_count")
        problems |= {"malformed" for figure in found.figures if figure.malformed}
    return Verdict(not problems, tuple(name for name in PROBLEMS if name in problems))


def _compare(found: tuple[FoundFigure, ...], scene: Scene) -> set[str]:
    """Problems of the figures, matched with those of the scene in whichever order agrees better."""
    orders = (found, found[::-1]) if len(found) == 2 else (found,)
    fewest = min((_complaints(order, scene) for order in orders), key=len)
    return set(fewest)


def _complaints(found: tuple[FoundFigure, ...], scene: Scene) -> list[str]:
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
    """Where the first figure is as seen from the second, by the larger difference of centres."""
    dx, dy = (a - b for a, b in zip(first.centre, second.centre, strict=True))
    if abs(dx) > abs(dy):
        return "left_of" if dx < 0 else "right_of"
    return "above" if dy < 0 else "below"


def _ground(pixels: Pixels) -> Pixels:
    """The ground's RGB as it is here: the median of the most frequent colour of the border."""
    border = pixels[_frame(BORDER)]  # [n, 3]
    distance = ((border[:, None] - _COLOURS) ** 2).sum(-1)  # [n, colours]
    nearest = distance.argmin(-1)
    return np.median(border[nearest == np.bincount(nearest).argmax()], axis=0)


def _frame(width: int) -> Mask:
    """The outermost pixels of a picture."""
    frame = np.ones((PICTURE, PICTURE), bool)
    frame[width:-width, width:-width] = False
    return frame


def _regions(pixels: Pixels, ground: Pixels) -> Iterator[_Region]:
    """Connected regions that differ from the ground, faint specks left out."""
    contrast = np.sqrt(((pixels - ground) ** 2).sum(-1))  # [height, width]
    for found in regionprops(label(contrast > CONTRAST, connectivity=2)):
        rows, columns = found.slice
        strongest = contrast[found.slice][found.image].max()
        if found.area >= SPECK_AREA or strongest >= SPECK_CONTRAST:
            yield _Region(found.image, columns.start, rows.start)


def _figure(region: _Region, pixels: Pixels, ground: Pixels) -> FoundFigure:
    """Name one region's colour, shape and size."""
    crop = pixels[region.slices]
    interior = _interior(region.mask)
    colour = np.median(crop[interior if interior.any() else region.mask], axis=0)
    silhouette = region.mask & _covered(crop, ground, colour, interior)
    fit = fit_shape(silhouette if silhouette.any() else region.mask)
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
    """The pixels of a region that lie farther from its rim than the edge is wide."""
    window = np.ones((2 * EDGE_WIDTH + 1,) * 2, np.uint8)
    return erosion(np.pad(blob, EDGE_WIDTH), window)[EDGE_WIDTH:-EDGE_WIDTH, EDGE_WIDTH:-EDGE_WIDTH]


def _covered(crop: Pixels, ground: Pixels, colour: Pixels, interior: Mask) -> Mask:
    """Pixels covered by the figure at least by half; a foreign patch in the interior is a hole."""
    span, offset = colour - ground, crop - ground
    cover = np.clip(offset @ span / max(float(span @ span), 1.0), 0, 1)  # [height, width]
    foreign = ((offset - cover[..., None] * span) ** 2).sum(-1) > BLEND_TOLERANCE**2
    return (cover >= 0.5) & ~opening(foreign & interior, PATCH)


def _colour_name(colour: Pixels) -> str:
    """The palette colour that is clearly the nearest, or UNKNOWN."""
    distance = np.sqrt(((_COLOURS - colour) ** 2).sum(-1))
    first, second = np.argsort(distance)[:2]
    limit = min(COLOUR_TOLERANCE, COLOUR_LEAD * distance[second])
    return _NAMES[first] if distance[first] <= limit else UNKNOWN


def _size_name(fit: Fit) -> str:
    names = [name for name, (low, high) in SIZE_LIMITS.items() if low <= fit.side < high]
    return names[0] if names else UNKNOWN
