"""The classical checker: passes true renders, clean or worn, and catches every kind of mistake."""

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage.filters import gaussian

from rudalle_lib.demo.checker import PROBLEMS, SIZE_LIMITS, UNKNOWN, check, describe
from rudalle_lib.demo.drawing import PALETTE, cross_arm, draw_placements, draw_scene
from rudalle_lib.demo.scenes import (
    COLOURS,
    GROUNDS,
    PICTURE,
    RELATIONS,
    SHAPES,
    SIDES,
    SIZES,
    Figure,
    Placement,
    Scene,
    all_combinations,
    boxes,
    place,
    random_scene,
)

Picture = NDArray[np.uint8]
Edit = Callable[[Picture, Placement, str, random.Random], None]


def worn(picture: Picture, noise: np.random.Generator, sigma: float = 0.7) -> Picture:
    """What a reconstruction does: a slight blur, a tint and noise."""
    soft = gaussian(picture.astype(np.float64), sigma, channel_axis=2, preserve_range=True)
    soft += noise.uniform(-12, 12, 3) + noise.normal(0, 5, picture.shape)
    return np.clip(np.rint(soft), 0, 255).astype(np.uint8)


def single(rng: random.Random, shape: str | None = None) -> tuple[Scene, Placement, Picture]:
    """A scene of one figure with its layout and picture."""
    choices = [c for c in all_combinations() if shape in (None, c[0])]
    kind, colour, ground = rng.choice(choices)
    scene = Scene(ground, (Figure(kind, colour, rng.choice(SIZES)),))
    (placed,) = place(scene, rng)
    return scene, placed, draw_placements(ground, (placed,))


def pair(rng: random.Random) -> Scene:
    """A scene of two figures."""
    return random_scene(rng, single_share=0)


# True pictures


@pytest.mark.parametrize("held_out", [False, True])
def test_true_renders_pass(held_out: bool) -> None:
    rng = random.Random(100 + held_out)
    for _ in range(300):
        scene = random_scene(rng, held_out)
        assert check(draw_scene(scene, rng), scene).problems == ()


def test_worn_renders_pass() -> None:
    rng, noise = random.Random(102), np.random.default_rng(102)
    passed = 0
    for i in range(200):
        scene = random_scene(rng, held_out=i % 2 == 0)
        passed += check(worn(draw_scene(scene, rng), noise), scene).ok
    assert passed >= 198


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_passes_in_every_colour_on_every_ground_in_every_size(shape: str) -> None:
    rng = random.Random(103)
    for kind, colour, ground in all_combinations():
        if kind == shape:
            for size in SIZES:
                scene = Scene(ground, (Figure(shape, colour, size),))
                assert check(draw_scene(scene, rng), scene).ok, scene


def test_descriptions_measure_figures() -> None:
    rng = random.Random(104)
    for _ in range(60):
        scene, placed, picture = single(rng)
        found = describe(picture)
        (figure,) = found.figures
        assert found.ground == scene.ground
        assert (figure.shape, figure.colour, figure.size) == (
            placed.figure.shape,
            placed.figure.colour,
            placed.figure.size,
        )
        assert figure.centre == pytest.approx(placed.centre, abs=0.6)
        changed = (picture != np.array(PALETTE[scene.ground])).any(-1).sum()
        assert 0.8 * changed <= figure.area <= changed
        assert figure.fit > 0.99
        assert figure.flaw < 0.5
        assert not figure.malformed


def test_an_empty_picture_has_no_figures() -> None:
    for ground in GROUNDS:
        picture = np.full((PICTURE, PICTURE, 3), PALETTE[ground], np.uint8)
        assert describe(picture).figures == ()
        scene = Scene(ground, (Figure("circle", "red", "big"),))
        assert check(picture, scene).problems == ("wrong_count",)


# Malformed figures, made by editing true renders


def erase(picture: Picture, x: float, y: float, width: float, height: float, ground: str) -> None:
    """Paint a rectangle of ground over a picture."""
    rows, columns = slice(round(y), round(y + height)), slice(round(x), round(x + width))
    picture[rows, columns] = PALETTE[ground]


def lose_arm(picture: Picture, placed: Placement, ground: str, rng: random.Random) -> None:
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
    erase(picture, placed.left + x, placed.top + y, width, height, ground)


def lose_half_an_arm(picture: Picture, placed: Placement, ground: str, rng: random.Random) -> None:
    side = placed.width
    length = (side - cross_arm(side)) / 4
    x = rng.choice([0, side - length])
    erase(picture, placed.left + x, placed.top, length, side, ground)


def bite_corner(picture: Picture, placed: Placement, ground: str, rng: random.Random) -> None:
    bite = placed.width / 4
    x, y = (rng.choice([0, placed.width - bite]) for _ in range(2))
    erase(picture, placed.left + x, placed.top + y, bite, bite, ground)


def bite_side(picture: Picture, placed: Placement, ground: str, rng: random.Random) -> None:
    bite = placed.width / 4
    x = rng.uniform(0, placed.width - bite)
    erase(picture, placed.left + x, placed.top, bite, bite, ground)


def punch_hole(picture: Picture, placed: Placement, ground: str, rng: random.Random) -> None:
    hole = placed.width / 6
    x, y = (rng.uniform(0.3, 0.5) * placed.width for _ in range(2))
    erase(picture, placed.left + x, placed.top + y, hole, hole, ground)


def cut_tip(picture: Picture, placed: Placement, ground: str, rng: random.Random) -> None:
    erase(picture, placed.left, placed.top, placed.width, placed.height / 3, ground)


def cut_base(picture: Picture, placed: Placement, ground: str, rng: random.Random) -> None:
    cut = placed.width / 4
    x = rng.choice([0, placed.width - cut])
    erase(picture, placed.left + x, placed.top, cut, placed.height, ground)


def add_bump(picture: Picture, placed: Placement, ground: str, rng: random.Random) -> None:
    bump = placed.width // 4
    x = placed.left + placed.width // 2 - bump // 2
    y = placed.top + placed.height - 1
    picture[y : min(y + bump, PICTURE - 1), x : x + bump] = PALETTE[placed.figure.colour]


def stain(picture: Picture, placed: Placement, ground: str, rng: random.Random) -> None:
    others = [c for c in COLOURS if c not in (placed.figure.colour, ground)]
    foreign = [c for c in others if not is_blend(c, placed.figure.colour, ground)]
    size = max(10, placed.width // 3)
    x, y = (start + (placed.width - size) // 2 for start in (placed.left, placed.top))
    picture[y : y + size, x : x + size] = PALETTE[rng.choice(foreign)]


def is_blend(colour: str, figure: str, ground: str) -> bool:
    """Whether a colour is about that of an edge between figure and ground."""
    a, b, c = (np.array(PALETTE[name], float) for name in (figure, ground, colour))
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


@pytest.mark.parametrize("wear", [False, True], ids=["clean", "worn"])
@pytest.mark.parametrize(("shape", "edit"), MALFORMATIONS)
def test_malformed_figures_fail(shape: str, edit: Edit, wear: bool) -> None:
    rng, noise = random.Random(200), np.random.default_rng(200)
    for _ in range(25):
        scene, placed, picture = single(rng, shape)
        edit(picture, placed, scene.ground, rng)
        verdict = check(worn(picture, noise) if wear else picture, scene)
        assert "malformed" in verdict.problems, scene


def blot(scene: Scene, outline: list[tuple[float, float]]) -> Picture:
    """A picture with one antialiased polygon of any outline, in the colours of a scene."""
    canvas = Image.new("L", (PICTURE * 8, PICTURE * 8))
    ImageDraw.Draw(canvas).polygon([(x * 8, y * 8) for x, y in outline], fill=255)
    cover = np.asarray(canvas.reduce(8), np.float64)[..., None] / 255
    ground, colour = (np.array(PALETTE[c]) for c in (scene.ground, scene.figures[0].colour))
    return np.rint(ground + cover * (colour - ground)).astype(np.uint8)


def test_wobbly_circles_fail() -> None:
    rng = random.Random(201)
    angles = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    for _ in range(60):
        scene, placed, _ = single(rng, "circle")
        waves, phase = rng.choice([2, 3, 4, 5, 6]), rng.uniform(0, 6)
        radius = placed.width / 2 * (1 + 0.15 * np.cos(waves * angles + phase))
        x, y = placed.centre
        picture = blot(
            scene, list(zip(x + radius * np.cos(angles), y + radius * np.sin(angles), strict=True))
        )
        assert {"malformed", "wrong_shape"} & set(check(picture, scene).problems), (waves, placed)


def test_stretched_and_leaning_figures_fail() -> None:
    rng = random.Random(202)
    for _ in range(40):
        scene, placed, _ = single(rng, "square")
        x, y, side = placed.left, placed.top, placed.width
        flat = [(x, y), (x + side, y), (x + side, y + side * 0.75), (x, y + side * 0.75)]
        assert not check(blot(scene, flat), scene).ok
        scene, placed, _ = single(rng, "triangle")
        x, y, side = placed.left, placed.top, placed.width
        leaning = [(x + side * 0.75, y), (x + side, y + side), (x, y + side)]
        assert not check(blot(scene, leaning), scene).ok
        upside_down = [(x, y), (x + side, y), (x + side / 2, y + side)]
        assert not check(blot(scene, upside_down), scene).ok


def test_broken_bars_fail() -> None:
    rng = random.Random(203)
    for _ in range(40):
        scene, placed, picture = single(rng, "bar")
        x, y = placed.centre
        erase(picture, x - 8, y - 8, 16, 16, scene.ground)
        assert "wrong_count" in check(picture, scene).problems


@pytest.mark.parametrize("size", SIZES)
def test_bent_bars_fail(size: str) -> None:
    figure = Figure("bar", "violet", size)
    width, height, _ = boxes("bar", size)[0]
    picture = draw_placements("grey", (Placement(figure, 20, 60, width, height),))
    middle = 20 + width // 2
    picture[:, :middle] = np.roll(picture[:, :middle], 4, axis=0)
    assert check(picture, Scene("grey", (figure,))).problems == ("malformed",)


def test_figures_cut_off_by_the_edge_of_the_picture_fail() -> None:
    scene = Scene("white", (Figure("square", "red", "big"),))
    picture = np.full((PICTURE, PICTURE, 3), PALETTE["white"], np.uint8)
    picture[40:96, 0:56] = PALETTE["red"]
    assert check(picture, scene).problems == ("malformed",)


# Well-formed figures, but not those that were asked for


def other(rng: random.Random, names: tuple[str, ...], *not_these: str) -> str:
    return rng.choice([name for name in names if name not in not_these])


def test_a_wrong_ground_is_caught_and_nothing_else() -> None:
    rng = random.Random(300)
    for _ in range(40):
        scene = random_scene(rng)
        colours = [figure.colour for figure in scene.figures]
        drawn = replace(scene, ground=other(rng, GROUNDS, scene.ground, *colours))
        assert check(draw_scene(drawn, rng), scene).problems == ("wrong_ground",)


@pytest.mark.parametrize(
    ("part", "names", "problem"),
    [
        ("shape", SHAPES, "wrong_shape"),
        ("colour", COLOURS, "wrong_colour"),
        ("size", SIZES, "wrong_size"),
    ],
)
def test_a_wrong_part_is_caught_and_nothing_else(
    part: str, names: tuple[str, ...], problem: str
) -> None:
    rng = random.Random(301)
    for _ in range(60):
        scene = random_scene(rng)
        index = rng.randrange(len(scene.figures))
        asked = scene.figures[index]
        drawn = replace(asked, **{part: other(rng, names, getattr(asked, part), scene.ground)})
        figures = tuple(drawn if i == index else f for i, f in enumerate(scene.figures))
        picture = draw_scene(replace(scene, figures=figures), rng)
        assert problem in check(picture, scene).problems
        if len(figures) == 1:
            assert check(picture, scene).problems == (problem,)


def test_a_wrong_relation_is_caught_and_nothing_else() -> None:
    rng = random.Random(302)
    for _ in range(60):
        scene = pair(rng)
        assert scene.relation is not None
        drawn = replace(scene, relation=other(rng, RELATIONS, scene.relation))
        assert check(draw_scene(drawn, rng), scene).problems == ("wrong_relation",)


def test_swapped_figures_are_a_wrong_relation() -> None:
    rng = random.Random(303)
    for _ in range(40):
        scene = pair(rng)
        drawn = replace(scene, figures=scene.figures[::-1])
        assert check(draw_scene(drawn, rng), scene).problems == ("wrong_relation",)


def test_colours_that_changed_places_are_caught() -> None:
    first, second = Figure("square", "red", "big"), Figure("circle", "blue", "big")
    scene = Scene("white", (first, second), "above")
    drawn = replace(scene, figures=(replace(first, colour="blue"), replace(second, colour="red")))
    assert not check(draw_scene(drawn, random.Random(0)), scene).ok


def test_a_figure_too_few_or_too_many_is_caught() -> None:
    rng = random.Random(304)
    for _ in range(40):
        scene = pair(rng)
        one = Scene(scene.ground, scene.figures[:1])
        assert check(draw_scene(one, rng), scene).problems == ("wrong_count",)
        assert check(draw_scene(scene, rng), one).problems == ("wrong_count",)


def test_stray_blobs_and_vivid_specks_count_as_figures() -> None:
    scene = Scene("white", (Figure("square", "red", "medium"),))
    clean = draw_placements("white", (Placement(scene.figures[0], 8, 8, 40, 40),))
    for size in (3, 5, 10):
        picture = clean.copy()
        picture[90 : 90 + size, 90 : 90 + size] = PALETTE["blue"]
        assert "wrong_count" in check(picture, scene).problems


def test_faint_specks_are_no_figures() -> None:
    scene = Scene("white", (Figure("square", "red", "medium"),))
    picture = draw_placements("white", (Placement(scene.figures[0], 8, 8, 40, 40),))
    picture[90:93, 90:93] = np.array(PALETTE["white"]) - 30  # seen, but faint
    assert check(picture, scene).ok


def recoloured(rgb: tuple[int, int, int]) -> tuple[Picture, Scene]:
    """A red square on white whose red is another colour."""
    scene = Scene("white", (Figure("square", "red", "medium"),))
    picture = draw_placements("white", (Placement(scene.figures[0], 8, 8, 40, 40),))
    return np.where(picture == PALETTE["red"], np.uint8(rgb), picture), scene


@pytest.mark.parametrize("rgb", [(190, 45, 50), (220, 20, 25), (254, 10, 0)])
def test_a_shade_of_red_is_red(rgb: tuple[int, int, int]) -> None:
    picture, scene = recoloured(rgb)
    assert check(picture, scene).ok


@pytest.mark.parametrize("rgb", [(250, 150, 190), (170, 30, 110), (224, 137, 138), (221, 78, 32)])
def test_pink_magenta_half_red_and_reddish_orange_are_no_colours(rgb: tuple[int, int, int]) -> None:
    picture, scene = recoloured(rgb)
    assert [figure.colour for figure in describe(picture).figures] == [UNKNOWN]
    assert check(picture, scene).problems == ("wrong_colour",)


def test_a_ground_outside_the_palette_is_unknown() -> None:
    lilac = np.full((PICTURE, PICTURE, 3), (200, 160, 230), np.uint8)
    assert describe(lilac).ground == UNKNOWN


def test_size_limits_are_half_way_between_the_sides_of_scenes() -> None:
    assert list(SIZE_LIMITS) == list(SIDES) == list(SIZES)
    for smaller, larger in zip(SIZES, SIZES[1:], strict=False):
        limit = (SIDES[smaller] + SIDES[larger]) / 2
        assert SIZE_LIMITS[smaller][1] == SIZE_LIMITS[larger][0] == limit


@pytest.mark.parametrize("shape", ["square", "circle", "triangle"])
def test_sizes_are_told_by_their_limits(shape: str) -> None:
    ends = (SIZE_LIMITS["small"][0] - 4, SIZE_LIMITS["big"][1] + 4)
    wanted = {end: UNKNOWN for end in ends}
    wanted |= {low + 2: size for size, (low, _) in SIZE_LIMITS.items()}
    wanted |= {high - 2: size for size, (_, high) in SIZE_LIMITS.items()}
    for side, size in wanted.items():
        placed = Placement(Figure(shape, "green", "medium"), 8, 8, side, side)
        (figure,) = describe(draw_placements("black", (placed,))).figures
        assert (figure.shape, figure.size) == (shape, size)


def test_all_sides_of_scenes_are_in_their_class() -> None:
    for size, side in SIDES.items():
        placed = Placement(Figure("cross", "blue", size), 8, 8, side, side)
        (figure,) = describe(draw_placements("beige", (placed,))).figures
        assert figure.size == size


# Odd input


def test_noise_and_swarms_fail_and_are_described_all_the_same() -> None:
    noise = np.random.default_rng(0)
    scene = Scene("white", (Figure("circle", "red", "big"),))
    static = noise.integers(0, 256, (PICTURE, PICTURE, 3), np.uint8)
    swarm = np.full((PICTURE, PICTURE, 3), PALETTE["white"], np.uint8)
    swarm[8:120:8, 8:120:8] = PALETTE["red"]
    dither = swarm.copy()
    dither[40:80:2, 40:80] = PALETTE["blue"]
    dither[41:80:2, 40:80] = PALETTE["yellow"]
    for picture in (static, swarm, dither):
        assert not check(picture, scene).ok
    assert 2 < len(describe(swarm).figures) <= 8


def test_verdicts_name_known_problems_in_order() -> None:
    rng = random.Random(400)
    for _ in range(80):
        problems = check(draw_scene(random_scene(rng), rng), random_scene(rng)).problems
        assert list(problems) == sorted(set(problems), key=PROBLEMS.index)


def test_other_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a uint8 picture of 128 x 128 x 3, found float"):
        describe(np.zeros((128, 128, 3)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"found uint8 \[256, 256, 3\]"):
        describe(np.zeros((256, 256, 3), np.uint8))
