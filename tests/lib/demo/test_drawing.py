"""Drawing: plain background outside figures, blended edges, and geometrically correct areas."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from rudalle_lib.demo.drawing import (
    PALETTE,
    cross_arm,
    draw_placements,
    draw_scene,
    figure_mask,
    outlines,
)
from rudalle_lib.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    IMAGE,
    SIDES,
    Figure,
    Placement,
    place,
    random_scene,
)

ALL_SIDES = list(SIDES.values())
TILTED = [side + 8 for side in ALL_SIDES]


def placed(shape: str, side: int = 40, angle: int = 0, colour: str = "red") -> Placement:
    return Placement(Figure(shape, colour, "medium"), 32, 48, side, side, angle)


def test_palette_has_distinct_colours_for_all_names() -> None:
    assert set(COLOURS) | set(BACKGROUNDS) == set(PALETTE)
    colours = [np.array(rgb) for rgb in PALETTE.values()]
    gaps = [np.linalg.norm(a - b) for i, a in enumerate(colours) for b in colours[:i]]
    assert min(gaps) > 80


def test_pixels_outside_the_boxes_are_background() -> None:
    rng = random.Random(1)
    for _ in range(60):
        scene = random_scene(rng)
        placements = place(scene, rng)
        image = draw_placements(scene.background, placements)
        assert image.shape == (IMAGE, IMAGE, 3)
        assert image.dtype == np.uint8
        outside = np.ones((IMAGE, IMAGE), bool)
        for p in placements:
            outside[p.top : p.top + p.height, p.left : p.left + p.width] = False
        assert (image[outside] == PALETTE[scene.background]).all()


@pytest.mark.parametrize("shape", ["square", "circle", "triangle", "cross", "bar"])
def test_figure_touches_all_four_sides_of_its_box(shape: str) -> None:
    for side in ALL_SIDES:
        mask = figure_mask(shape, side, side, 45 if shape == "bar" else 0)
        assert mask.shape == (side, side)
        assert mask.dtype == np.float32
        assert all(edge.max() > 0 for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))


@pytest.mark.parametrize("side", ALL_SIDES)
def test_squares_and_flat_bars_are_exact(side: int) -> None:
    bar = figure_mask("bar", side + 8, 12)
    assert (figure_mask("square", side, side) == 1).all()
    assert (bar == 1).all()
    assert bar.shape == (12, side + 8)


@pytest.mark.parametrize("side", ALL_SIDES)
def test_crosses_are_two_beams(side: int) -> None:
    arm = cross_arm(side)
    near, far = (side - arm) // 2, (side + arm) // 2
    expected = np.zeros((side, side), np.float32)
    expected[near:far, :] = expected[:, near:far] = 1
    mask = figure_mask("cross", side, side)
    np.testing.assert_allclose(mask, expected, atol=0.25)  # edges may be off by one subpixel
    assert (mask[expected == 1] == 1).all()


@pytest.mark.parametrize("side", ALL_SIDES)
def test_beams_of_crosses_are_on_the_grid(side: int) -> None:
    arm = cross_arm(side)
    assert arm % 4 == 0
    assert (side - arm) % 4 == 0
    assert 0.3 < arm / side < 0.45


@pytest.mark.parametrize("side", ALL_SIDES)
def test_circles_and_triangles_have_the_correct_area(side: int) -> None:
    assert figure_mask("circle", side, side).sum() == pytest.approx(math.pi * side**2 / 4, rel=0.01)
    assert figure_mask("triangle", side, side).sum() == pytest.approx(side**2 / 2, rel=0.02)


@pytest.mark.parametrize("side", TILTED)
def test_tilted_bars_have_the_correct_area_and_mirror_each_other(side: int) -> None:
    cut = 12 if side >= 56 else 8
    rising, falling = (figure_mask("bar", side, side, angle) for angle in (45, 135))
    assert rising.sum() == pytest.approx(2 * cut * (side - cut), rel=0.03)
    np.testing.assert_allclose(rising[:, ::-1], falling, atol=0.2)
    assert rising[-1, 0] == rising[0, 0] == 0  # the corners of the box are empty
    assert rising[side // 4, -side // 4] == 1  # it rises to the right
    assert rising[side // 4, side // 4] == 0


@pytest.mark.parametrize("side", [28, 40, 56])
def test_circles_and_triangles_are_symmetric(side: int) -> None:
    circle, triangle = (figure_mask(shape, side, side) for shape in ("circle", "triangle"))
    np.testing.assert_allclose(circle, circle.T, atol=0.04)
    np.testing.assert_allclose(circle, circle[::-1], atol=0.04)
    np.testing.assert_allclose(triangle, triangle[:, ::-1], atol=0.2)
    assert triangle[0].sum() < triangle[-1].sum()  # the base is at the bottom


@pytest.mark.parametrize(("shape", "angle"), [("circle", 0), ("triangle", 0), ("bar", 45)])
def test_slanted_edges_are_blends_of_figure_and_background(shape: str, angle: int) -> None:
    image = draw_placements("white", (placed(shape, angle=angle),)).astype(float)
    span = np.subtract(PALETTE["red"], PALETTE["white"]).astype(float)
    offset = image - PALETTE["white"]
    cover = offset @ span / (span @ span)
    assert np.abs(offset - cover[..., None] * span).max() <= 1  # rounding
    partial = (cover > 0.05) & (cover < 0.95)
    assert 20 < partial.sum() < 240  # edges of a pixel or two, not a blur
    assert (image[48 + 20, 32 + 20] == PALETTE["red"]).all()


def test_coverage_ranges_from_0_to_1() -> None:
    for shape in ("circle", "triangle", "cross"):
        mask = figure_mask(shape, 36, 36)
        assert mask.min() == 0
        assert mask.max() == 1


def test_images_are_determined_by_the_seed() -> None:
    scene = random_scene(random.Random(2))
    first = draw_scene(scene, random.Random(3))
    assert (draw_scene(scene, random.Random(3)) == first).all()
    figure_mask.cache_clear()
    assert (draw_scene(scene, random.Random(3)) == first).all()
    assert (draw_scene(scene, random.Random(4)) != first).any()


def test_outlines_stay_in_their_box() -> None:
    for shape, angle in [("square", 0), ("triangle", 0), ("cross", 0), ("bar", 45), ("bar", 135)]:
        points = [point for outline in outlines(shape, 40, 40, angle) for point in outline]
        assert {min(x for x, _ in points), min(y for _, y in points)} == {0}
        assert {max(x for x, _ in points), max(y for _, y in points)} == {40}
