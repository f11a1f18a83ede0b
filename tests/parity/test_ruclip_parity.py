"""A ruCLIP in the published layout encodes images and texts like the reference."""

from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image

from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.images.scoring import Scorer, preprocess
from rudalle_lib.weights.loading import LoadedScorer, load_scorer
from tests.parity.goldens import GOLDENS, Golden, assert_close, load_golden

NAME = "ruclip-vit-base-patch32-224"
IMAGES = 4


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden("ruclip")


@pytest.fixture(scope="module")
def loaded(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> LoadedScorer:
    """The small model, saved in the layout of the published files and read by the public loader."""
    folder = tmp_path_factory.mktemp("weights")
    shutil.copytree(GOLDENS / "ruclip", folder / NAME)
    torch.save(golden.state(seed=2), folder / NAME / "pytorch_model.bin")
    return load_scorer(NAME, WeightsConfig(folder=str(folder)))


@pytest.fixture(scope="module")
def images(golden: Golden) -> list[Image.Image]:
    return [Image.fromarray(golden[f"picture{index}"].numpy()) for index in range(IMAGES)]


def test_text_ids(loaded: LoadedScorer, golden: Golden) -> None:
    length = loaded.model.config.context_length
    ids = [loaded.tokenizer.encode_clip(text, length).ids for text in golden.config["captions"]]
    assert ids == golden["input_ids"].tolist()


def test_preprocessing(loaded: LoadedScorer, golden: Golden) -> None:
    for index in range(IMAGES):
        image = golden[f"picture{index}"].permute(2, 0, 1)[None]
        pixels = preprocess(image, loaded.model.config)
        assert_close(pixels, golden["pixel_values"][index : index + 1], tolerance=1e-6)


def test_features_and_logits(loaded: LoadedScorer, golden: Golden) -> None:
    ids, pixels = golden["input_ids"], golden["pixel_values"]
    assert_close(loaded.model.encode_image(pixels), golden["image_features"])
    assert_close(loaded.model.encode_text(ids), golden["text_features"])
    logits_per_image, logits_per_text = loaded.model(ids, pixels)
    assert_close(logits_per_image, golden["logits_per_image"])
    assert_close(logits_per_text, golden["logits_per_text"])


def test_scorer_equals_the_reference_predictor(
    loaded: LoadedScorer, golden: Golden, images: list[Image.Image]
) -> None:
    """The score is the cosine of unit features; those of texts are averaged over six templates."""
    scorer = Scorer(loaded.model, loaded.tokenizer, batch_size=3)
    captions = golden.config["captions"]
    assert_close(scorer.text_features(captions), golden["text_latents"])
    assert_close(scorer.image_features(images), golden["image_latents"])
    scores = scorer.score(images, captions[:IMAGES])
    expected = (golden["image_latents"] * golden["text_latents"][:IMAGES]).sum(-1)
    assert_close(scores, expected)
