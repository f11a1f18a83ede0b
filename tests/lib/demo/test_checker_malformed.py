"""The classical checker rejects malformed figures, made by editing true renders."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from PIL import Image, ImageDraw

from rudalle_lib.demo.checker import check
from rudalle_lib.demo.drawing import PALETTE, cross_arm, draw_placements
from rudalle_lib.demo.scenes import COLOURS, IMAGE, SIZES, Figure, Placement, Scene, boxes
from tests.support.scene_renders import Pixels, degraded, erase, single_figure

Edit = Callable[[Pixels, Placement, str, random.Random], None]


def lose_arm(image: Pixels, placed: Placement, background: str, rng: random.Random) -> None:
    side = placed.width
    arm = (side - cross_arm(side)) / 2
    x, y, width, height = rng.choice(
        [
            (0, 0, arm, side),
            (side - arm, 0, arm, side),
            (0, 0, side, arm),
            (0, side - arm, side, arm),
        ]
    )
    erase(image, placed.left + x, placed.top + y, width, height, background)


def lose_half_an_arm(image: Pixels, placed: Placement, background: str, rng: random.Random) -> None:
    side = placed.width
    length = (side - cross_arm(side)) / 4
    x = rng.choice([0, side - length])
    erase(image, placed.left + x, placed.top, length, side, background)


def bite_corner(image: Pixels, placed: Placement, background: str, rng: random.Random) -> None:
    bite = placed.width / 4
    x, y = (rng.choice([0, placed.width - bite]) for _ in range(2))
    erase(image, placed.left + x, placed.top + y, bite, bite, background)


def bite_side(image: Pixels, placed: Placement, background: str, rng: random.Random) -> None:
    bite = placed.width / 4
    x = rng.uniform(0, placed.width - bite)
    erase(image, placed.left + x, placed.top, bite, bite, background)


def punch_hole(image: Pixels, placed: Placement, background: str, rng: random.Random) -> None:
    hole = placed.width / 6
    x, y = (rng.uniform(0.3, 0.5) * placed.width for _ in range(2))
    erase(image, placed.left + x, placed.top + y, hole, hole, background)


def cut_tip(image: Pixels, placed: Placement, background: str, rng: random.Random) -> None:
    erase(image, placed.left, placed.top, placed.width, placed.height / 3, background)


def cut_base(image: Pixels, placed: Placement, background: str, rng: random.Random) -> None:
    cut = placed.width / 4
    x = rng.choice([0, placed.width - cut])
    erase(image, placed.left + x, placed.top, cut, placed.height, background)


def add_bump(image: Pixels, placed: Placement, background: str, rng: random.Random) -> None:
    bump = placed.width // 4
    x = placed.left + placed.width // 2 - bump // 2
    y = placed.top + placed.height - 1
    image[y : min(y + bump, IMAGE - 1), x : x + bump] = PALETTE[placed.figure.colour]


def stain(image: Pixels, placed: Placement, background: str, rng: random.Random) -> None:
    others = [c for c in COLOURS if c not in (placed.figure.colour, background)]
    foreign = [c for c in others if not is_blend(c, placed.figure.colour, background)]
    size = max(10, placed.width // 3)
    x, y = (start + (placed.width - size) // 2 for start in (placed.left, placed.top))
    image[y : y + size, x : x + size] = PALETTE[rng.choice(foreign)]


def is_blend(colour: str, figure: str, background: str) -> bool:
    """Whether a colour is similar to that of an edge between figure and background."""
    a, b, c = (np.array(PALETTE[name], float) for name in (figure, background, colour))
    share = float(np.clip((c - b) @ (a - b) / ((a - b) @ (a - b)), 0, 1))
    return bool(np.linalg.norm(c - b - share * (a - b)) < 65) and share > 0.45


MALFORMATIONS: list[tuple[str, Edit]] = [
    ("cross", lose_arm),
    ("cross", lose_half_an_arm),
    ("square", bite_corner),
    ("square", bite_side),
    ("square", punch_hole),
    ("circle", punch_hole),
    ("triangle", cut_tip),
    ("triangle", cut_base),
    ("square", add_bump),
    ("circle", add_bump),
    ("square", stain),
    ("circle", stain),
]


@pytest.mark.parametrize("degrade", [False, True], ids=["clean", "degraded"])
@pytest.mark.parametrize(("shape", "edit"), MALFORMATIONS)
def test_malformed_figures_fail(shape: str, edit: Edit, degrade: bool) -> None:
    rng, noise = random.Random(200), np.random.default_rng(200)
    for _ in range(25):
        scene, placed, image = single_figure(rng, shape)
        edit(image, placed, scene.background, rng)
        verdict = check(degraded(image, noise) if degrade else image, scene)
        assert "malformed" in verdict.problems, scene


def polygon_image(scene: Scene, outline: Sequence[tuple[float, float]]) -> Pixels:
    """An image of one antialiased polygon in the colours of a scene."""
    canvas = Image.new("L", (IMAGE * 8, IMAGE * 8))
    ImageDraw.Draw(canvas).polygon([(x * 8, y * 8) for x, y in outline], fill=255)
    cover = np.asarray(canvas.reduce(8), np.float64)[..., None] / 255
    background, colour = (np.array(PALETTE[c]) for c in (scene.background, scene.figures[0].colour))
    return np.rint(background + cover * (colour - background)).astype(np.uint8)


def test_wobbly_circles_fail() -> None:
    rng = random.Random(201)
    angles = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    for _ in range(60):
        scene, placed, _ = single_figure(rng, "circle")
        waves, phase = rng.choice([2, 3, 4, 5, 6]), rng.uniform(0, 6)
        radius = placed.width / 2 * (1 + 0.15 * np.cos(waves * angles + phase))
        x, y = placed.centre
        image = polygon_image(
            scene, list(zip(x + radius * np.cos(angles), y + radius * np.sin(angles), strict=True))
        )
        assert {"malformed", "wrong_shape"} & set(check(image, scene).problems), (waves, placed)


def test_stretched_and_leaning_figures_fail() -> None:
    rng = random.Random(202)
    for _ in range(40):
        scene, placed, _ = single_figure(rng, "square")
        x, y, side = placed.left, placed.top, placed.width
        flat = [(x, y), (x + side, y), (x + side, y + side * 0.75), (x, y + side * 0.75)]
        assert not check(polygon_image(scene, flat), scene).ok
        scene, placed, _ = single_figure(rng, "triangle")
        x, y, side = placed.left, placed.top, placed.width
        leaning = [(x + side * 0.75, y), (x + side, y + side), (x, y + side)]
        assert not check(polygon_image(scene, leaning), scene).ok
        upside_down = [(x, y), (x + side, y), (x + side / 2, y + side)]
        assert not check(polygon_image(scene, upside_down), scene).ok


def test_broken_bars_fail() -> None:
    rng = random.Random(203)
    for _ in range(40):
        scene, placed, image = single_figure(rng, "bar")
        x, y = placed.centre
        erase(image, x - 8, y - 8, 16, 16, scene.background)
        assert "wrong_count" in check(image, scene).problems


@pytest.mark.parametrize("size", SIZES)
def test_bent_bars_fail(size: str) -> None:
    figure = Figure("bar", "violet", size)
    width, height, _ = boxes("bar", size)[0]
    image = draw_placements("grey", (Placement(figure, 20, 60, width, height),))
    middle = 20 + width // 2
    image[:, :middle] = np.roll(image[:, :middle], 4, axis=0)
    assert check(image, Scene("grey", (figure,))).problems == ("malformed",)


def test_figures_cut_off_by_the_edge_of_the_image_fail() -> None:
    scene = Scene("white", (Figure("square", "red", "big"),))
    image = np.full((IMAGE, IMAGE, 3), PALETTE["white"], np.uint8)
    image[40:96, 0:56] = PALETTE["red"]
    assert check(image, scene).problems == ("malformed",)
