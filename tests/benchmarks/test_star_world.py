"""The user's world: stars and yellow backgrounds are drawn, described, checked and held out."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from rudalle_lib.demo import drawing
from rudalle_lib.demo.captions import russian_caption
from rudalle_lib.demo.checker import check as check_without_stars
from rudalle_lib.demo.drawing import draw_placements
from rudalle_lib.demo.scenes import BACKGROUNDS, COLOURS, SIZES, Figure, Placement, Scene
from rudalle_lib.training.demo.scene_tokens import PLAIN
from tests.benchmarks import star_world
from tests.benchmarks.star_world import STAR, YELLOW
from tests.support.scene_renders import degraded


@pytest.mark.parametrize("unseen", [False, True])
def test_true_images_pass_the_check(unseen: bool) -> None:
    rng, noise = random.Random(3), np.random.default_rng(3)
    for _ in range(40):
        scene = star_world.random_scene(rng, unseen)
        image = star_world.draw(scene, rng)
        assert star_world.check(image, scene).problems == ()
        assert star_world.check(degraded(image, noise), scene).problems == ()


def test_the_check_without_stars_rejects_them() -> None:
    rng = random.Random(4)
    star = Scene("white", (Figure(STAR, "red", "big"),))
    problems = check_without_stars(star_world.draw(star, rng), star).problems
    assert {"wrong_shape", "malformed"} & {*problems}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", ["triangle", "cross", "circle", "square"])
def test_other_shapes_are_no_stars(shape: str, size: str) -> None:
    rng, scene = random.Random(5), Scene("white", (Figure(STAR, "blue", size),))
    other = Scene("white", (Figure(shape, "blue", size),))
    assert "wrong_shape" in star_world.check(star_world.draw(other, rng), scene).problems


def test_a_star_without_a_point_is_malformed() -> None:
    scene = Scene("white", (Figure(STAR, "blue", "big"),))
    placed = (Placement(scene.figures[0], 36, 36, 56, 56),)
    image = draw_placements("white", placed, draw=star_world.mask)
    assert star_world.check(image, scene).ok
    image[36:44] = drawing.PALETTE["white"]
    assert "malformed" in star_world.check(image, scene).problems


def test_a_fifth_is_held_out_and_every_word_is_seen() -> None:
    unseen = Counter(star_world.is_unseen(c) for c in star_world.new_combinations())
    assert unseen[True] / unseen.total() == pytest.approx(0.2, abs=0.02)
    rng = random.Random(6)
    seen = [star_world.random_scene(rng) for _ in range(500)]
    assert not any(star_world.is_unseen(c) for scene in seen for c in scene.combinations())
    stars = {(f.colour, s.background) for s in seen for f in s.figures if f.shape == STAR}
    assert {colour for colour, _ in stars} == set(COLOURS)
    assert {background for _, background in stars} == {*BACKGROUNDS, YELLOW}
    held_out = [star_world.random_scene(rng, unseen=True) for _ in range(100)]
    assert all(any(map(star_world.is_unseen, scene.combinations())) for scene in held_out)


def test_captions() -> None:
    pair = (Figure(STAR, "white", "small"), Figure(STAR, "red", "big"))
    assert russian_caption(Scene(YELLOW, pair, "left_of")) == (
        "маленькая белая звезда слева от большой красной звезды на жёлтом фоне"
    )


def test_regularity_is_the_share_of_cells_with_the_most_frequent_token() -> None:
    def of_edges(images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Equal tokens for all colours: plain ones, and one for each number of edge pixels."""
        cells = images.reshape(-1, 16, 8, 16, 8, 3).swapaxes(2, 3).reshape(-1, 16, 16, 64, 3)
        plain = np.array([drawing.PALETTE[colour] for colour in PLAIN])
        codes = np.abs(cells[..., :1, :] - plain).sum(-1).argmin(-1)
        differing = (cells != cells[..., :1, :]).any(-1).sum(-1)
        return np.where(differing > 0, 100 + differing, codes)

    def by_chance(images: NDArray[np.uint8]) -> NDArray[np.int64]:
        tokens = of_edges(images)
        noise = np.random.default_rng(1).integers(100, 10_000, tokens.shape)
        return np.where(tokens >= 100, noise, tokens)

    assert star_world.regularity(of_edges) == 1
    assert star_world.regularity(by_chance) < 0.1
