"""Cutouts: which pixels are background by their colour, and when a network decides instead."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rudalle_lib.config.sections import CutoutConfig
from rudalle_lib.images.codecs import decode_image, encode_image
from rudalle_lib.images.cutout import connected_with_edge, cut_out, cut_out_rows
from rudalle_lib.schema.records import PixelsRecord
from tests.support.tiny_segmenter import tiny_segmenter

SIDE = 64


def disc(background: int = 255, radius: int = 20) -> tuple[Tensor, Tensor]:
    """A red disc with a white eye on a plain background, and where the disc is."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    distance = (rows - 30) ** 2 + (columns - 34) ** 2
    image = torch.full((3, SIDE, SIDE), background, dtype=torch.uint8)
    image[:, distance <= radius**2] = torch.tensor([200, 20, 30], dtype=torch.uint8)[:, None]
    image[:, distance <= 16] = 255
    return image, distance <= radius**2


@pytest.mark.parametrize("background", [255, 240, 0, 128])
def test_the_background_has_the_colour_of_the_edge_and_is_connected_to_it(
    background: int,
) -> None:
    image, subject = disc(background)
    (cut,) = cut_out(image[None])
    assert cut.method == "colour"
    assert {*cut.alpha.unique().tolist()} == {0, 255}
    assert not cut.alpha[~subject].any()
    assert (cut.alpha[26:35, 30:39] == 255).all(), "the white of the eye is not background"
    lost = subject & (cut.alpha == 0)
    assert 0 < lost.sum() < 200, "the subject loses a rim of one pixel, and no more"


def test_noise_and_a_subject_at_the_edge_are_tolerated() -> None:
    torch.manual_seed(1)
    image, subject = disc(230)
    image[:, :, :10] = torch.tensor([20, 60, 200], dtype=torch.uint8)[:, None, None]
    noisy = (image.int() + torch.randint(-8, 9, image.shape)).clamp(0, 255).to(torch.uint8)
    (cut,) = cut_out(noisy[None])
    assert cut.method == "colour"
    assert (cut.alpha[:, :9] == 255).all() and not cut.alpha[0, 20:].any()


def test_an_image_without_a_plain_background_is_unchanged() -> None:
    torch.manual_seed(2)
    noise = torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8)
    blank = torch.full((3, SIDE, SIDE), 255, dtype=torch.uint8)
    for cut in cut_out(torch.stack((noise, blank))):
        assert cut.method is None and (cut.alpha == 255).all()


def test_a_winding_background_is_found_completely() -> None:
    """A spiral that is one pixel wide and open at the edge."""
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


def test_a_network_decides_only_if_it_is_confident() -> None:
    image, _ = disc()
    for logits, way in (((0.0, 9.0), "network"), ((0.0, 1.0), "colour"), ((9.0, 0.0), "colour")):
        (cut,) = cut_out(image[None], tiny_segmenter(*logits))
        assert cut.method == way, logits
    (cut,) = cut_out(image[None], tiny_segmenter(0.0, 1.0), min_confidence=0.7)
    assert cut.method == "network" and (cut.alpha == 255).all()
    (cut,) = cut_out(image[None], tiny_segmenter(torch.nan, 1.0))
    assert cut.method == "colour"


def test_masks_have_the_size_of_their_images() -> None:
    wide = torch.zeros(2, 3, 40, 72, dtype=torch.uint8)
    assert [tuple(cut.alpha.shape) for cut in cut_out(wide, tiny_segmenter(0.0, 9.0))] == 2 * [
        (40, 72)
    ]


def test_other_dtypes_and_shapes_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \[N, 3, H, W\], found torch.float32"):
        cut_out(torch.zeros(1, 3, 8, 8))


def test_rows_become_files_with_alpha_in_order() -> None:
    image, subject = disc()
    rows = [PixelsRecord(f"a-{n:03d}", "a", SIDE, SIDE, encode_image(image)) for n in range(3)]
    steps: list[tuple[int, int]] = []
    section = CutoutConfig(transparent=True, batch_size=2)
    cut = cut_out_rows(None, rows, section, lambda *step: steps.append(step)).rows()
    assert [row.image_id for row in cut] == ["a-000", "a-001", "a-002"]
    assert {row.background for row in cut} == {"colour"} and steps == [(2, 3), (3, 3)]
    for row in cut:
        assert row.image is not None and (row.width, row.height) == (SIDE, SIDE)
        pixels = decode_image(row.image, keep_alpha=True)
        assert pixels[:3].equal(image) and not pixels[3][~subject].any()
    sure = tiny_segmenter(0.0, 9.0)
    assert {row.background for row in cut_out_rows(sure, rows, section).rows()} == {"network"}
    assert cut_out_rows(None, [], section).rows() == []
