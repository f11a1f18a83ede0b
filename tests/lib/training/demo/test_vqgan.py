"""Training of the demo VQ-GAN: data, codebook, resuming, and an export that loads again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from rudalle_lib.training.demo import vqgan
from rudalle_lib.training.demo.ema_codebook import EmaCodebook


def test_exported_network_loads_and_reconstructs(vqgan_folder: Path) -> None:
    model = vqgan.load_vqgan(vqgan_folder)
    images = vqgan.random_images(random.Random(0), 1)
    assert vqgan.round_trip(model, images).shape == images.shape
    assert (vqgan_folder / "MODEL_CARD.md").read_text().startswith("# demo-vqgan")


@pytest.mark.usefixtures("tiny_vqgan_settings")
def test_stopped_training_resumes(tmp_path: Path) -> None:
    vqgan.train(tmp_path, vqgan.phases(3, 0, 0, 0.5, 0.1), 1)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 3
    vqgan.train(tmp_path, vqgan.phases(3, 2, 1, 0.5, 0.1), 1)
    resumed = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert resumed["step"] == 6
    assert resumed["seconds"] > state["seconds"]


@pytest.mark.parametrize(("crop", "side"), [(None, 128), (64, 64)])
def test_images_are_determined_by_the_seed(crop: int | None, side: int) -> None:
    images = vqgan.random_images(random.Random(1), 3, crop)
    assert images.shape == (3, 3, side, side)
    assert -1 <= images.min() < images.max() <= 1
    assert torch.equal(images, vqgan.random_images(random.Random(1), 3, crop))
    assert not torch.equal(images, vqgan.random_images(random.Random(2), 3, crop))


def test_reconstruction_loss_is_zero_only_for_equal_images() -> None:
    images = vqgan.held_out_images(1, 2)
    assert vqgan.reconstruction_loss(images, images) == 0
    assert vqgan.reconstruction_loss(images.roll(1, -1), images) > 0


def test_psnr_of_a_known_error() -> None:
    images = torch.zeros(2, 3, 4, 4)
    assert torch.allclose(vqgan.psnr(images + 0.2, images), torch.full((2,), 20.0))


def test_price_moves_features_to_the_frequent_code() -> None:
    book = EmaCodebook(2, 1)
    book.codes.copy_(torch.tensor([[0.0], [1.0]]))
    book.counts.copy_(torch.tensor([99.0, 1.0]))
    features = torch.tensor([[0.4], [0.6], [1.0]])
    assert book.choose(features).tolist() == [0, 1, 1]
    book.price = 0.1
    assert book.choose(features).tolist() == [0, 0, 1]


def test_codes_start_at_clusters_and_follow_them() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    features = centres.repeat(50, 1) + 0.01 * torch.randn(150, 2, generator=generator)
    book = EmaCodebook(3, 2, decay=0.5)
    book.start(features, generator)
    assert torch.cdist(centres, book.codes).amin(1).max() < 0.1
    for _ in range(20):
        book.follow(features + 1, generator)
    assert torch.cdist(centres + 1, book.codes).amin(1).max() < 0.1


def test_gumbel_form_chooses_the_nearest_code_with_its_price(vqgan_folder: Path) -> None:
    model = vqgan.load_vqgan(vqgan_folder)
    codes, price = torch.randn(16, 32), torch.randn(16)
    vqgan.write_gumbel_form(model, codes, price)
    features = torch.randn(2, 32, 3, 3)
    distance = (features[:, None] - codes[:, :, None, None]).pow(2).sum(2)
    expected = (distance - price[:, None, None]).argmin(1)
    assert torch.equal(model.code_logits(features).argmax(1), expected)


def test_price_lowers_the_perplexity_of_tokens(vqgan_folder: Path) -> None:
    model = vqgan.load_vqgan(vqgan_folder)
    codes = model.quantize.embed.weight.detach().clone()
    images = vqgan.random_images(random.Random(3), 4)
    free = vqgan.set_entropy_price(model, codes, 0.0, images)
    assert vqgan.set_entropy_price(model, codes, 100.0, images) <= free <= 16
