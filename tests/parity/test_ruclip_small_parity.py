"""A ruCLIP Small in the published layout encodes images and texts like the reference."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from rudalle_lib import registry
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.images.scoring import Scorer, preprocess
from rudalle_lib.weights.loading import LoadedScorer, load_scorer
from tests.parity.goldens import GOLDENS, Golden, assert_close, load_golden

NAME = "ruclip-small"
IMAGES = 5
SQUARE = 3
"""The first `SQUARE` images are square."""


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden("ruclip_small")


def published_state(golden: Golden) -> dict[str, torch.Tensor]:
    """Add the masks that old versions of transformers stored in each layer."""
    state = golden.state(seed=6)
    for layer in range(2):
        prefix = f"text_encoder.model.h.{layer}.attn"
        state[f"{prefix}.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.uint8).tril()
        state[f"{prefix}.masked_bias"] = torch.tensor(-1e4)
    return state


@pytest.fixture(scope="module")
def loaded(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> LoadedScorer:
    """The small model, saved in the layout of the published files and read by the public loader."""
    folder: Path = tmp_path_factory.mktemp("weights")
    shutil.copytree(GOLDENS / "ruclip_small", folder / "rugpt3small_based_on_gpt2")
    (folder / "ru-clip").mkdir()
    torch.save(published_state(golden), folder / "ru-clip" / "ViT-B32-small.pt")
    entry = registry.get(NAME)
    sizes = {key: value for key, value in golden.config.items() if key != "texts"}
    small = dataclasses.replace(entry, architecture=MappingProxyType(sizes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_ENTRIES", {**registry._ENTRIES, NAME: small})
        return load_scorer(NAME, WeightsConfig(folder=str(folder)))


@pytest.fixture(scope="module")
def images(golden: Golden) -> list[Image.Image]:
    return [Image.fromarray(golden[f"picture{index}"].numpy()) for index in range(IMAGES)]


def test_text_ids(loaded: LoadedScorer, golden: Golden) -> None:
    """Unusual spaces, capitals, an empty text and one that is too long."""
    length = loaded.model.config.context_length
    encoded = [loaded.tokenizer.encode_clip(text, length) for text in golden.config["texts"]]
    assert [text.ids for text in encoded] == golden["input_ids"].tolist()
    assert any(text.truncated for text in encoded) and not all(text.truncated for text in encoded)


def test_special_piece_in_the_text_does_not_end_it(loaded: LoadedScorer) -> None:
    ids = loaded.tokenizer.encode_clip("a</s>b<pad><s>", 24).ids
    assert (ids.count(1), ids.count(2)) == (1, 1)
    features = loaded.model.encode_text(torch.tensor([ids]))
    assert features.shape == (1, 48)


def test_preprocessing(loaded: LoadedScorer, golden: Golden) -> None:
    """Square images are equal; others may differ by a level, as between versions of Pillow."""
    level = 1 / 255 / 0.26
    for index in range(IMAGES):
        image = golden[f"picture{index}"].permute(2, 0, 1)[None]
        pixels = preprocess(image, loaded.model.config)
        tolerance = 1e-6 if index < SQUARE else 2 * level
        assert_close(pixels, golden["pixels"][index : index + 1], tolerance)


def test_features_and_logits(loaded: LoadedScorer, golden: Golden) -> None:
    ids, pixels = golden["input_ids"], golden["pixels"]
    image_features = F.normalize(loaded.model.encode_image(pixels), dim=-1)
    text_features = F.normalize(loaded.model.encode_text(ids), dim=-1)
    assert_close(image_features, golden["image_latents"])
    assert_close(text_features, golden["text_latents"])
    logits_per_image, logits_per_text = loaded.model(ids, pixels)
    assert_close(logits_per_image, golden["logits"])
    assert_close(logits_per_text, golden["logits"].t())


def test_scorer(loaded: LoadedScorer, golden: Golden, images: list[Image.Image]) -> None:
    """The scorer of runs returns the cosines of the reference, including those of capitals."""
    scorer = Scorer(loaded.model, loaded.tokenizer, ["{}"], batch_size=3)
    scores = scorer.score(images[:SQUARE], golden.config["texts"][:SQUARE])
    expected = golden["image_latents"] * golden["text_latents"][: len(golden["image_latents"])]
    assert_close(scores, expected.sum(-1)[:SQUARE])
