"""The classical checker accepts true renders, clean or degraded, and detects all problems."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from rudalle_lib.demo.checker import PROBLEMS, SIZE_LIMITS, UNKNOWN, check, describe
from rudalle_lib.demo.drawing import PALETTE, draw_placements, draw_scene
from rudalle_lib.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    IMAGE,
    RELATIONS,
    SHAPES,
    SIDES,
    SIZES,
    Figure,
    Placement,
    Scene,
    all_combinations,
    random_scene,
)
from tests.support.scene_renders import Pixels, degraded, single_figure


def two_figures(rng: random.Random) -> Scene:
    """A random scene with two figures."""
    return random_scene(rng, single_share=0)


# True images


@pytest.mark.parametrize("held_out", [False, True])
def test_true_renders_pass(held_out: bool) -> None:
    rng = random.Random(100 + held_out)
    for _ in range(300):
        scene = random_scene(rng, held_out)
        assert check(draw_scene(scene, rng), scene).problems == ()


def test_degraded_renders_pass() -> None:
    rng, noise = random.Random(102), np.random.default_rng(102)
    passed = 0
    for i in range(200):
        scene = random_scene(rng, held_out=i % 2 == 0)
        passed += check(degraded(draw_scene(scene, rng), noise), scene).ok
    assert passed >= 198


@pytest.mark.parametrize("shape", SHAPES)
def test_all_combinations_pass_in_all_sizes(shape: str) -> None:
    rng = random.Random(103)
    for kind, colour, background in all_combinations():
        if kind == shape:
            for size in SIZES:
                scene = Scene(background, (Figure(shape, colour, size),))
                assert check(draw_scene(scene, rng), scene).ok, scene


def test_descriptions_measure_figures() -> None:
    rng = random.Random(104)
    for _ in range(60):
        scene, placed, image = single_figure(rng)
        found = describe(image)
        (figure,) = found.figures
        assert found.background == scene.background
        assert (figure.shape, figure.colour, figure.size) == (
            placed.figure.shape,
            placed.figure.colour,
            placed.figure.size,
        )
        assert figure.centre == pytest.approx(placed.centre, abs=0.6)
        changed = (image != np.array(PALETTE[scene.background])).any(-1).sum()
        assert 0.8 * changed <= figure.area <= changed
        assert figure.fit > 0.99
        assert figure.flaw < 0.5
        assert not figure.malformed


def test_empty_image_has_no_figures() -> None:
    for background in BACKGROUNDS:
        image = np.full((IMAGE, IMAGE, 3), PALETTE[background], np.uint8)
        assert describe(image).figures == ()
        scene = Scene(background, (Figure("circle", "red", "big"),))
        assert check(image, scene).problems == ("wrong_count",)


# Well-formed figures that do not match the scene


def other(rng: random.Random, names: tuple[str, ...], *excluded: str) -> str:
    return rng.choice([name for name in names if name not in excluded])


def test_only_the_wrong_background_is_reported() -> None:
    rng = random.Random(300)
    for _ in range(40):
        scene = random_scene(rng)
        colours = [figure.colour for figure in scene.figures]
        drawn = replace(scene, background=other(rng, BACKGROUNDS, scene.background, *colours))
        assert check(draw_scene(drawn, rng), scene).problems == ("wrong_background",)


@pytest.mark.parametrize(
    ("part", "names", "problem"),
    [
        ("shape", SHAPES, "wrong_shape"),
        ("colour", COLOURS, "wrong_colour"),
        ("size", SIZES, "wrong_size"),
    ],
)
def test_only_the_wrong_attribute_is_reported(
    part: str, names: tuple[str, ...], problem: str
) -> None:
    rng = random.Random(301)
    for _ in range(60):
        scene = random_scene(rng)
        index = rng.randrange(len(scene.figures))
        expected = scene.figures[index]
        drawn = replace(
            expected, **{part: other(rng, names, getattr(expected, part), scene.background)}
        )
        figures = tuple(drawn if i == index else f for i, f in enumerate(scene.figures))
        image = draw_scene(replace(scene, figures=figures), rng)
        assert problem in check(image, scene).problems
        if len(figures) == 1:
            assert check(image, scene).problems == (problem,)


def test_only_the_wrong_relation_is_reported() -> None:
    rng = random.Random(302)
    for _ in range(60):
        scene = two_figures(rng)
        assert scene.relation is not None
        drawn = replace(scene, relation=other(rng, RELATIONS, scene.relation))
        assert check(draw_scene(drawn, rng), scene).problems == ("wrong_relation",)


def test_swapped_figures_have_the_wrong_relation() -> None:
    rng = random.Random(303)
    for _ in range(40):
        scene = two_figures(rng)
        drawn = replace(scene, figures=scene.figures[::-1])
        assert check(draw_scene(drawn, rng), scene).problems == ("wrong_relation",)


def test_swapped_colours_are_reported() -> None:
    first, second = Figure("square", "red", "big"), Figure("circle", "blue", "big")
    scene = Scene("white", (first, second), "above")
    drawn = replace(scene, figures=(replace(first, colour="blue"), replace(second, colour="red")))
    assert not check(draw_scene(drawn, random.Random(0)), scene).ok


def test_missing_and_extra_figures_are_reported() -> None:
    rng = random.Random(304)
    for _ in range(40):
        scene = two_figures(rng)
        one = Scene(scene.background, scene.figures[:1])
        assert check(draw_scene(one, rng), scene).problems == ("wrong_count",)
        assert check(draw_scene(scene, rng), one).problems == ("wrong_count",)


def test_stray_blobs_and_vivid_specks_count_as_figures() -> None:
    scene = Scene("white", (Figure("square", "red", "medium"),))
    clean = draw_placements("white", (Placement(scene.figures[0], 8, 8, 40, 40),))
    for size in (3, 5, 10):
        image = clean.copy()
        image[90 : 90 + size, 90 : 90 + size] = PALETTE["blue"]
        assert "wrong_count" in check(image, scene).problems


def test_faint_specks_are_not_figures() -> None:
    scene = Scene("white", (Figure("square", "red", "medium"),))
    image = draw_placements("white", (Placement(scene.figures[0], 8, 8, 40, 40),))
    image[90:93, 90:93] = np.array(PALETTE["white"]) - 30  # visible, but faint
    assert check(image, scene).ok


def recoloured(rgb: tuple[int, int, int]) -> tuple[Pixels, Scene]:
    """A square in the given colour on white, and a scene that expects it to be red."""
    scene = Scene("white", (Figure("square", "red", "medium"),))
    image = draw_placements("white", (Placement(scene.figures[0], 8, 8, 40, 40),))
    return np.where(image == PALETTE["red"], np.array(rgb, np.uint8), image), scene


@pytest.mark.parametrize("rgb", [(190, 45, 50), (220, 20, 25), (254, 10, 0)])
def test_a_shade_of_red_is_red(rgb: tuple[int, int, int]) -> None:
    image, scene = recoloured(rgb)
    assert check(image, scene).ok


@pytest.mark.parametrize("rgb", [(250, 150, 190), (170, 30, 110), (224, 137, 138), (221, 78, 32)])
def test_colours_outside_the_palette_are_unknown(rgb: tuple[int, int, int]) -> None:
    image, scene = recoloured(rgb)
    assert [figure.colour for figure in describe(image).figures] == [UNKNOWN]
    assert check(image, scene).problems == ("wrong_colour",)


def test_background_outside_the_palette_is_unknown() -> None:
    lilac = np.full((IMAGE, IMAGE, 3), (200, 160, 230), np.uint8)
    assert describe(lilac).background == UNKNOWN


def test_size_limits_are_half_way_between_the_sides_of_scenes() -> None:
    assert list(SIZE_LIMITS) == list(SIDES) == list(SIZES)
    for smaller, larger in zip(SIZES, SIZES[1:], strict=False):
        limit = (SIDES[smaller] + SIDES[larger]) / 2
        assert SIZE_LIMITS[smaller][1] == SIZE_LIMITS[larger][0] == limit


@pytest.mark.parametrize("shape", ["square", "circle", "triangle"])
def test_sizes_are_classified_by_their_limits(shape: str) -> None:
    ends = (SIZE_LIMITS["small"][0] - 4, SIZE_LIMITS["big"][1] + 4)
    expected = {end: UNKNOWN for end in ends}
    expected |= {low + 2: size for size, (low, _) in SIZE_LIMITS.items()}
    expected |= {high - 2: size for size, (_, high) in SIZE_LIMITS.items()}
    for side, size in expected.items():
        placed = Placement(Figure(shape, "green", "medium"), 8, 8, side, side)
        (figure,) = describe(draw_placements("black", (placed,))).figures
        assert (figure.shape, figure.size) == (shape, size)


def test_all_sides_of_scenes_have_their_size() -> None:
    for size, side in SIDES.items():
        placed = Placement(Figure("cross", "blue", size), 8, 8, side, side)
        (figure,) = describe(draw_placements("beige", (placed,))).figures
        assert figure.size == size


# Odd input


def test_noise_and_many_figures_fail_but_are_described() -> None:
    noise = np.random.default_rng(0)
    scene = Scene("white", (Figure("circle", "red", "big"),))
    static = noise.integers(0, 256, (IMAGE, IMAGE, 3), np.uint8)
    crowd = np.full((IMAGE, IMAGE, 3), PALETTE["white"], np.uint8)
    crowd[8:120:8, 8:120:8] = PALETTE["red"]
    dither = crowd.copy()
    dither[40:80:2, 40:80] = PALETTE["blue"]
    dither[41:80:2, 40:80] = PALETTE["yellow"]
    for image in (static, crowd, dither):
        assert not check(image, scene).ok
    assert 2 < len(describe(crowd).figures) <= 8


def test_verdicts_name_known_problems_in_order() -> None:
    rng = random.Random(400)
    for _ in range(80):
        problems = check(draw_scene(random_scene(rng), rng), random_scene(rng)).problems
        assert list(problems) == sorted(set(problems), key=PROBLEMS.index)


def test_other_arrays_are_rejected() -> None:
    with pytest.raises(ValueError, match="expected a uint8 image of 128 x 128 x 3, found float"):
        describe(np.zeros((128, 128, 3)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"found uint8 \[256, 256, 3\]"):
        describe(np.zeros((256, 256, 3), np.uint8))
