"""Cutting out: what is ground by its colour and what is not, and when a network is believed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rudalle_lib.cutout import connected_with_edge, cut_out
from rudalle_lib.models.efficient_unet import EfficientUnet, EfficientUnetConfig
from rudalle_lib.pictures import cut_out_pictures
from rudalle_lib.weights import LoadedSegmenter

SIDE = 64


def disc(ground: int = 255, radius: int = 20) -> tuple[Tensor, Tensor]:
    """A red disc with a white eye on a ground of one colour, and where the disc is."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    distance = (rows - 30) ** 2 + (columns - 34) ** 2
    picture = torch.full((3, SIDE, SIDE), ground, dtype=torch.uint8)
    picture[:, distance <= radius**2] = torch.tensor([200, 20, 30], dtype=torch.uint8)[:, None]
    picture[:, distance <= 16] = 255
    return picture, distance <= radius**2


@pytest.fixture(scope="module")
def network() -> EfficientUnet:
    """A small one that decides by its head alone, which the tests set."""
    torch.manual_seed(0)
    config = EfficientUnetConfig(width=0.1, depth=0.3, decoder_channels=(8, 8, 8, 8, 8))
    made = EfficientUnet(config).eval()
    torch.nn.init.zeros_(made.segmentation_head[0].weight)
    return made


def say(network: EfficientUnet, ground: float, subject: float) -> EfficientUnet:
    with torch.no_grad():
        network.segmentation_head[0].bias.copy_(torch.tensor([ground, subject]))
    return network


@pytest.mark.parametrize("ground", [255, 240, 0, 128])
def test_the_ground_has_the_colour_of_the_edge_and_hangs_together_with_it(ground: int) -> None:
    picture, subject = disc(ground)
    (cut,) = cut_out(picture[None])
    assert cut.way == "colour"
    assert {*cut.alpha.unique().tolist()} == {0, 255}
    assert not cut.alpha[~subject].any()
    assert (cut.alpha[26:35, 30:39] == 255).all(), "the white of the eye is no ground"
    lost = subject & (cut.alpha == 0)
    assert 0 < lost.sum() < 200, "one pixel of the rim goes with the ground, and no more"


def test_noise_and_subjects_at_the_edge_do_not_matter() -> None:
    torch.manual_seed(1)
    picture, subject = disc(230)
    picture[:, :, :10] = torch.tensor([20, 60, 200], dtype=torch.uint8)[:, None, None]
    noisy = (picture.int() + torch.randint(-8, 9, picture.shape)).clamp(0, 255).to(torch.uint8)
    (cut,) = cut_out(noisy[None])
    assert cut.way == "colour"
    assert (cut.alpha[:, :9] == 255).all() and not cut.alpha[0, 20:].any()


def test_a_picture_without_a_plain_ground_stays_as_it_is() -> None:
    torch.manual_seed(2)
    noise = torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8)
    blank = torch.full((3, SIDE, SIDE), 255, dtype=torch.uint8)
    for cut in cut_out(torch.stack((noise, blank))):
        assert cut.way is None and (cut.alpha == 255).all()


def test_a_winding_ground_is_found_to_its_end() -> None:
    """A spiral with one pixel between its walls, open at the edge."""
    free = torch.zeros(33, 33, dtype=torch.bool)
    row, column, length, turn = 16, 16, 2, 0
    directions = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    free[row, column] = True
    while 0 < row < 32 and 0 < column < 32:
        for _ in range(length):
            row, column = row + directions[turn % 4][0], column + directions[turn % 4][1]
            if not (0 <= row <= 32 and 0 <= column <= 32):
                break
            free[row, column] = True
        turn += 1
        length += 2 if turn % 2 == 0 else 0
    closed = free.clone()
    closed[0], closed[-1], closed[:, 0], closed[:, -1] = False, False, False, False
    assert torch.equal(connected_with_edge(free), free) and free.sum() > 250
    assert not connected_with_edge(closed).any()


def test_only_a_network_that_is_sure_is_believed(network: EfficientUnet) -> None:
    picture, _ = disc()
    for logits, way in (((0.0, 9.0), "network"), ((0.0, 1.0), "colour"), ((9.0, 0.0), "colour")):
        (cut,) = cut_out(picture[None], say(network, *logits))
        assert cut.way == way, logits
    (cut,) = cut_out(picture[None], say(network, 0.0, 1.0), min_confidence=0.7)
    assert cut.way == "network" and (cut.alpha == 255).all()
    (cut,) = cut_out(picture[None], say(network, torch.nan, 1.0))
    assert cut.way == "colour"


def test_masks_have_the_size_of_their_pictures(network: EfficientUnet) -> None:
    wide = torch.zeros(2, 3, 40, 72, dtype=torch.uint8)
    assert [tuple(cut.alpha.shape) for cut in cut_out(wide, say(network, 0.0, 9.0))] == 2 * [
        (40, 72)
    ]


def test_a_script_gets_pictures_with_alpha(network: EfficientUnet) -> None:
    picture, subject = disc()
    (cut,) = cut_out_pictures(picture[None])
    assert torch.equal(cut[:3], picture) and not cut[3][~subject].any()
    loaded = LoadedSegmenter(say(network, 0.0, 9.0), None)  # type: ignore[arg-type]
    assert (cut_out_pictures(picture[None], loaded)[0, 3] == 255).all()
    assert cut_out_pictures(picture[None][:0]).shape == (0, 4, SIDE, SIDE)


def test_other_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \[N, 3, H, W\], found torch.float32"):
        cut_out(torch.zeros(1, 3, 8, 8))
