"""The scorer: every text once, pictures of any size, cosines in the order they were asked for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from rudalle_lib.errors import SettingsError
from rudalle_lib.models.ruclip import RuClip, RuClipConfig
from rudalle_lib.scoring import Scorer, preprocess
from rudalle_lib.tokenizer import EncodedText

CONFIG = RuClipConfig(
    embed_dim=8,
    image_resolution=16,
    vision_layers=1,
    vision_width=16,
    vision_patch_size=8,
    vision_heads=2,
    context_length=12,
    vocab_size=40,
    transformer_width=16,
    transformer_heads=2,
    transformer_layers=1,
)


class LetterTokenizer:
    """One id a letter; remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode_clip(self, text: str, length: int) -> EncodedText:
        self.seen.append(text)
        ids = [2, *(4 + ord(letter) % 36 for letter in text.lower())][: length - 1] + [3]
        return EncodedText(ids + [0] * (length - len(ids)), len(text) > length - 2)


@pytest.fixture
def scorer() -> Iterator[Scorer]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = RuClip(CONFIG).eval()
    yield Scorer(model, LetterTokenizer(), templates=("{}", "фото {}"), batch_size=2)


def noise(count: int, height: int, width: int) -> torch.Tensor:
    rng = np.random.default_rng(count)
    return torch.from_numpy(rng.integers(0, 256, (count, 3, height, width), dtype=np.uint8))


def test_scores_are_cosines_of_their_own_text(scorer: Scorer) -> None:
    images, texts = noise(5, 16, 16), ["круг", "крест", "круг", "полоса", "x"]
    scores = scorer.score(images, texts)
    assert scores.dtype == torch.float32
    every = scorer.image_features(images) @ scorer.text_features(texts).t()
    torch.testing.assert_close(scores, every.diagonal())
    assert scores.abs().max() <= 1


def test_a_text_goes_through_once_per_template(scorer: Scorer) -> None:
    features = scorer.text_features([" Круг ", "крест", "круг", "крест"])
    assert isinstance(scorer.tokenizer, LetterTokenizer)
    assert scorer.tokenizer.seen == ["круг", "крест", "фото круг", "фото крест"]
    assert features[0].equal(features[2])
    assert features[1].equal(features[3])
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(4))


def test_batch_size_does_not_change_scores(scorer: Scorer) -> None:
    images, texts = noise(5, 20, 16), list("abcde")
    whole = Scorer(scorer.model, scorer.tokenizer, scorer.templates, batch_size=64)
    torch.testing.assert_close(scorer.score(images, texts), whole.score(images, texts))


def test_pillow_images_score_as_tensors_do(scorer: Scorer) -> None:
    images = noise(3, 30, 20)
    pillow = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    texts = list("abc")
    assert scorer.score(pillow, texts).equal(scorer.score(images, texts))
    mixed = [pillow[0], pillow[1].convert("L"), pillow[2].resize((50, 50))]
    assert scorer.score(mixed, texts)[0].item() == pytest.approx(
        scorer.score(images, texts)[0].item(), abs=1e-6
    )


def test_preprocessing_takes_the_central_square() -> None:
    images = noise(1, 24, 16)
    square = preprocess(images[:, :, 4:20], CONFIG)
    assert preprocess(images, CONFIG).equal(square)
    expected = (images[0, 1, 4, 0].item() / 255 - CONFIG.mean[1]) / CONFIG.std[1]
    assert square[0, 1, 0, 0].item() == pytest.approx(expected, abs=1e-6)


def test_braces_in_a_prompt_are_just_text(scorer: Scorer) -> None:
    scorer.text_features(["{0.__class__} {}"])
    assert isinstance(scorer.tokenizer, LetterTokenizer)
    assert scorer.tokenizer.seen == ["{0.__class__} {}", "фото {0.__class__} {}"]


def test_nothing_to_score(scorer: Scorer) -> None:
    assert scorer.score(noise(2, 16, 16)[:0], []).shape == (0,)
    assert scorer.score([], []).shape == (0,)


def test_half_precision_model_gives_float32_scores(scorer: Scorer) -> None:
    images, texts = noise(2, 16, 16), ["круг", "крест"]
    exact = scorer.score(images, texts)
    scorer.model.to(torch.bfloat16)
    rough = scorer.score(images, texts)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0.05, rtol=0)


def test_refusals(scorer: Scorer) -> None:
    with pytest.raises(ValueError, match="one text a picture, found 1 for 2 pictures"):
        scorer.score(noise(2, 16, 16), ["круг"])
    for templates in ((), ("фото",), ("{} {}",)):
        with pytest.raises(SettingsError, match=r"exactly one \{\} in each"):
            Scorer(scorer.model, scorer.tokenizer, templates)
    with pytest.raises(SettingsError, match="batch_size must be at least 1, found 0"):
        Scorer(scorer.model, scorer.tokenizer, batch_size=0)
