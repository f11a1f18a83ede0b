"""Tokens of scenes laid together: the same patch everywhere, as the VQ-GAN gives it alone."""

import numpy as np
import pytest
import torch

from rudalle_lib.config import WeightsConfig
from rudalle_lib.demo.drawing import draw_placements
from rudalle_lib.demo.scenes import Figure, Placement
from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.training.scene_tokens import GRID, SceneTokens
from rudalle_lib.training.vqgan import psnr, to_float
from rudalle_lib.weights import load_vqgan

SQUARE, CIRCLE = Figure("square", "red", "small"), Figure("circle", "blue", "small")


@pytest.fixture(scope="module")
def network() -> VqGan:
    return load_vqgan("demo-vqgan", WeightsConfig()).model


@pytest.fixture(scope="module")
def lay(network: VqGan) -> SceneTokens:
    return SceneTokens(network)


def test_a_ground_is_one_code(lay: SceneTokens) -> None:
    tokens = lay("white", ())
    assert tokens.shape == (GRID, GRID)
    assert len(np.unique(tokens)) == 1


def test_a_figure_has_the_same_patch_wherever_it_lies(lay: SceneTokens) -> None:
    one = lay("white", (Placement(SQUARE, 20, 20, 28, 28),))
    other = lay("white", (Placement(SQUARE, 60, 44, 28, 28),))
    assert np.array_equal(np.roll(one, (3, 5), (0, 1)), other)


def test_a_second_figure_leaves_the_first_alone(lay: SceneTokens) -> None:
    square, circle = Placement(SQUARE, 12, 12, 28, 28), Placement(CIRCLE, 76, 76, 32, 32)
    both, one = lay("white", (square, circle)), lay("white", (square,))
    assert np.array_equal(both[:8, :8], one[:8, :8])
    assert not np.array_equal(both, one)


def test_a_figure_at_the_margin_is_cut_at_the_edge(lay: SceneTokens) -> None:
    tokens = lay("white", (Placement(SQUARE, 4, 4, 28, 28),))
    middle = lay("white", (Placement(SQUARE, 12, 12, 28, 28),))
    assert np.array_equal(tokens[:-1, :-1], middle[1:, 1:])


def test_laid_tokens_decode_to_the_picture(network: VqGan, lay: SceneTokens) -> None:
    placements = (Placement(SQUARE, 12, 12, 28, 28), Placement(CIRCLE, 76, 76, 32, 32))
    tokens = torch.from_numpy(lay("white", placements).astype(np.int64))
    picture = to_float(draw_placements("white", placements)[None])
    with torch.no_grad():
        assert psnr(network.decode(tokens[None]), picture).item() > 30
