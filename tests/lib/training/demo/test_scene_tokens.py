"""Tokens of scenes: one code per colour and per edge, independent of position and colour."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.demo.drawing import PALETTE, draw_placements
from rudalle_lib.demo.scenes import (
    COLOURS,
    SHAPES,
    SIZES,
    STEP,
    Figure,
    Placement,
    boxes,
    place,
    random_scene,
)
from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.training.demo.scene_tokens import (
    CODES,
    GRID,
    MIN_DIFFERENCE,
    PLAIN,
    edges,
    scene_tokens,
    shows,
)
from rudalle_lib.training.demo.vqgan import psnr, to_float
from rudalle_lib.weights.loading import load_vqgan


@pytest.fixture(scope="module")
def network() -> VqGan:
    return load_vqgan("demo-vqgan", WeightsConfig()).model


def placed(
    shape: str, colour: str, left: int = 12, top: int = 12, size: str = "small"
) -> Placement:
    return Placement(Figure(shape, colour, size), left, top, *boxes(shape, size)[0])


def test_background_has_one_code() -> None:
    tokens = scene_tokens("white", ())
    assert tokens.shape == (GRID, GRID)
    assert (tokens == PLAIN["white"]).all()


def test_only_plain_cells_have_the_code_of_their_colour() -> None:
    rng = random.Random(3)
    for _ in range(50):
        scene = random_scene(rng)
        placements = place(scene, rng)
        image = draw_placements(scene.background, placements)
        tokens = scene_tokens(scene.background, placements)
        cells = image.reshape(GRID, STEP, GRID, STEP, 3).swapaxes(1, 2)
        for colour, code in PLAIN.items():
            plain = (cells == PALETTE[colour]).all((2, 3, 4))
            assert np.array_equal(plain, tokens == code)


def test_tokens_of_a_figure_do_not_depend_on_its_position() -> None:
    one = scene_tokens("white", (placed("triangle", "red", 20, 20),))
    other = scene_tokens("white", (placed("triangle", "red", 60, 44),))
    assert np.array_equal(np.roll(one, (3, 5), (0, 1)), other)


@pytest.mark.parametrize("shape", SHAPES)
def test_edges_have_the_same_codes_in_all_colours(shape: str) -> None:
    images = [scene_tokens("grey", (placed(shape, colour),)) for colour in COLOURS]
    edge = images[0] >= len(PLAIN)
    assert edge.any()
    for tokens in images:
        assert np.array_equal(tokens[edge], images[0][edge])


def test_all_figures_have_cells_of_their_colour() -> None:
    for shape in SHAPES:
        for size in SIZES:
            for box in boxes(shape, size):
                figure = Placement(Figure(shape, "green", size), 12, 12, *box)
                assert (scene_tokens("black", (figure,)) == PLAIN["green"]).any()


def test_different_edges_have_different_codes() -> None:
    coverage = np.stack(edges())
    distances = np.abs(coverage[:, None] - coverage[None]).mean((2, 3))
    assert distances[~np.eye(len(coverage), dtype=bool)].min() >= MIN_DIFFERENCE
    assert len(PLAIN) + len(coverage) <= CODES


def test_tokens_show_only_their_scene() -> None:
    rng = random.Random(7)
    for _ in range(50):
        scene, other = random_scene(rng), random_scene(rng)
        tokens = scene_tokens(scene.background, place(scene, rng))
        assert shows(tokens, scene)
        assert scene == other or not shows(tokens, other)
        tokens[5, 5] += 1
        assert not shows(tokens, scene)


def test_demo_vqgan_encodes_and_decodes_these_tokens(network: VqGan) -> None:
    """Tested on held-out combinations, which the network has never seen."""
    rng = random.Random(4)
    scenes = [random_scene(rng, held_out=True) for _ in range(16)]
    pairs = [(scene.background, place(scene, rng)) for scene in scenes]
    images = to_float(np.stack([draw_placements(*pair) for pair in pairs]))
    tokens = torch.from_numpy(np.stack([scene_tokens(*pair) for pair in pairs]).astype(np.int64))
    assert (network.encode(images) == tokens).float().mean() > 0.995
    assert psnr(network.decode(tokens), images).mean() > 32
