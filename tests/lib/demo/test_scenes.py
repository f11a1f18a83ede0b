"""Scenes: the held-out fifth of all combinations, and valid layouts."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from rudalle_lib.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    GAP,
    IMAGE,
    MARGIN,
    RELATIONS,
    SHAPES,
    SIDES,
    SIZES,
    STEP,
    Figure,
    Placement,
    Scene,
    all_combinations,
    has_held_out,
    is_held_out,
    place,
    random_scene,
)

HELD_OUT = [combination for combination in all_combinations() if is_held_out(combination)]


def drawn(held_out: bool, count: int = 400) -> list[Scene]:
    rng = random.Random(11)
    return [random_scene(rng, held_out) for _ in range(count)]


def test_exactly_a_fifth_is_held_out() -> None:
    assert len(all_combinations()) == len(set(all_combinations())) == 150
    assert len(HELD_OUT) == 30


def test_each_colour_on_each_background_lacks_exactly_one_shape() -> None:
    missing = Counter((colour, background) for _, colour, background in HELD_OUT)
    pairs = {(c, b) for c in COLOURS for b in BACKGROUNDS if c != b}
    assert missing == Counter(pairs)


def test_held_out_combinations_are_stratified_by_shape() -> None:
    counts = Counter(shape for shape, _, _ in HELD_OUT)
    assert set(counts) == set(SHAPES)
    assert max(counts.values()) - min(counts.values()) <= 2


def test_pairs_from_held_out_combinations_are_seen() -> None:
    seen = set(all_combinations()) - set(HELD_OUT)
    for shape, colour, background in HELD_OUT:
        assert any((s, c) == (shape, colour) for s, c, _ in seen)
        assert any((s, b) == (shape, background) for s, _, b in seen)
        assert any((c, b) == (colour, background) for _, c, b in seen)


def test_black_square_on_white_is_seen() -> None:
    assert not is_held_out(("square", "black", "white"))


def test_training_scenes_never_show_a_held_out_combination() -> None:
    assert not any(has_held_out(scene) for scene in drawn(held_out=False))


def test_held_out_scenes_start_with_a_held_out_combination_and_cover_all() -> None:
    first = [scene.combinations()[0] for scene in drawn(held_out=True)]
    assert set(first) == set(HELD_OUT)


@pytest.mark.parametrize("held_out", [False, True])
def test_scenes_are_valid_and_varied(held_out: bool) -> None:
    scenes = drawn(held_out)
    for scene in scenes:
        assert (scene.relation is None) == (len(scene.figures) == 1)
        assert all(figure.colour != scene.background for figure in scene.figures)
        assert len({(f.shape, f.colour) for f in scene.figures}) == len(scene.figures)
    assert {scene.relation for scene in scenes} == {None, *RELATIONS}
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {figure.size for scene in scenes for figure in scene.figures} == set(SIZES)
    assert 0.3 < sum(scene.relation is None for scene in scenes) / len(scenes) < 0.5


def test_scenes_and_layouts_are_determined_by_the_seed() -> None:
    def layouts(seed: int) -> list[tuple[Placement, ...]]:
        rng = random.Random(seed)
        return [place(random_scene(rng), rng) for _ in range(20)]

    assert layouts(3) == layouts(3) != layouts(4)


@pytest.mark.parametrize("held_out", [False, True])
def test_layouts_are_on_the_grid_inside_the_margins(held_out: bool) -> None:
    rng = random.Random(5)
    for scene in drawn(held_out):
        for placed in place(scene, rng):
            for start, length in ((placed.left, placed.width), (placed.top, placed.height)):
                assert (start - MARGIN) % STEP == 0
                assert length % 4 == 0
                assert start >= MARGIN
                assert start + length <= IMAGE - MARGIN


def test_two_figures_keep_their_gap_and_are_clearly_in_their_relation() -> None:
    rng = random.Random(6)
    for scene in drawn(held_out=False):
        if scene.relation is None:
            continue
        first, second = place(scene, rng)
        dx, dy = (b - a for a, b in zip(first.centre, second.centre, strict=True))
        if scene.relation in ("left_of", "right_of"):
            assert (dx > 0) == (scene.relation == "left_of")
            assert abs(dx) - (first.width + second.width) / 2 >= GAP
            assert abs(dy) <= 16
        else:
            assert (dy > 0) == (scene.relation == "above")
            assert abs(dy) - (first.height + second.height) / 2 >= GAP
            assert abs(dx) <= 16


@pytest.mark.parametrize("size", SIZES)
def test_figures_have_the_side_of_their_size(size: str) -> None:
    (placed,) = place(Scene("white", (Figure("square", "black", size),)), random.Random(8))
    assert (placed.width, placed.height) == (SIDES[size], SIDES[size])


def test_bars_are_upright_flat_or_tilted() -> None:
    rng = random.Random(9)
    scene = Scene("white", (Figure("bar", "red", "medium"),))
    boxes = {(p.width, p.height, p.angle) for _ in range(100) for p in place(scene, rng)}
    assert boxes == {(48, 12, 0), (12, 48, 90), (48, 48, 45), (48, 48, 135)}
