"""The scorer encodes each text once, accepts images of any size, and returns cosines in order."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from rudalle_lib.config.sections import ScoreConfig
from rudalle_lib.errors import SettingsError
from rudalle_lib.images.scoring import Scorer, preprocess, probabilities, score_rows
from tests.support.tiny_scorer import CONFIG, LetterTokenizer, make_scorer, pixel_rows


@pytest.fixture
def scorer() -> Scorer:
    return make_scorer(("{}", "фото {}"))


def noise(count: int, height: int, width: int) -> torch.Tensor:
    rng = np.random.default_rng(count)
    return torch.from_numpy(rng.integers(0, 256, (count, 3, height, width), dtype=np.uint8))


def test_scores_are_cosines_of_each_image_with_its_own_text(scorer: Scorer) -> None:
    images, texts = noise(5, 16, 16), ["круг", "крест", "круг", "полоса", "x"]
    scores = scorer.score(images, texts)
    assert scores.dtype == torch.float32
    cosines = scorer.image_features(images) @ scorer.text_features(texts).t()
    torch.testing.assert_close(scores, cosines.diagonal())
    assert scores.abs().max() <= 1


def test_each_text_is_encoded_once_per_template(scorer: Scorer) -> None:
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


def test_pillow_images_score_like_tensors(scorer: Scorer) -> None:
    images = noise(3, 30, 20)
    pillow = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    texts = list("abc")
    assert scorer.score(pillow, texts).equal(scorer.score(images, texts))
    mixed = [pillow[0], pillow[1].convert("L"), pillow[2].resize((50, 50))]
    assert scorer.score(mixed, texts)[0].item() == pytest.approx(
        scorer.score(images, texts)[0].item(), abs=1e-6
    )


def test_preprocessing_crops_the_central_square() -> None:
    images = noise(1, 24, 16)
    square = preprocess(images[:, :, 4:20], CONFIG)
    assert preprocess(images, CONFIG).equal(square)
    expected = (images[0, 1, 4, 0].item() / 255 - CONFIG.mean[1]) / CONFIG.std[1]
    assert square[0, 1, 0, 0].item() == pytest.approx(expected, abs=1e-6)


def test_braces_in_a_prompt_are_plain_text(scorer: Scorer) -> None:
    scorer.text_features(["{0.__class__} {}"])
    assert isinstance(scorer.tokenizer, LetterTokenizer)
    assert scorer.tokenizer.seen == ["{0.__class__} {}", "фото {0.__class__} {}"]


def test_zero_images_are_allowed(scorer: Scorer) -> None:
    assert scorer.score(noise(2, 16, 16)[:0], []).shape == (0,)
    assert scorer.score([], []).shape == (0,)


def test_a_half_precision_model_returns_float32_scores(scorer: Scorer) -> None:
    images, texts = noise(2, 16, 16), ["круг", "крест"]
    exact = scorer.score(images, texts)
    scorer.model.to(torch.bfloat16)
    rough = scorer.score(images, texts)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0.05, rtol=0)


def test_invalid_arguments_are_rejected(scorer: Scorer) -> None:
    with pytest.raises(ValueError, match="one text per image, found 1 for 2 images"):
        scorer.score(noise(2, 16, 16), ["круг"])
    for templates in ((), ("фото",), ("{} {}",)):
        with pytest.raises(SettingsError, match=r"exactly one \{\} in each"):
            Scorer(scorer.model, scorer.tokenizer, templates)
    with pytest.raises(SettingsError, match="batch_size must be at least 1, found 0"):
        Scorer(scorer.model, scorer.tokenizer, batch_size=0)


def test_the_probability_is_the_softmax_of_scaled_cosines() -> None:
    torch.manual_seed(0)
    images, texts, negatives = (F.normalize(torch.randn(n, 5), dim=1) for n in (3, 3, 2))
    found = probabilities(images, texts, negatives, 20.0)
    for row in range(3):
        competing = torch.stack([texts[row], *negatives])
        expected = (20.0 * competing @ images[row]).softmax(0)[0]
        torch.testing.assert_close(found[row], expected)


def test_the_prompt_among_its_negative_texts_has_half_the_probability() -> None:
    unit = torch.eye(4)
    found = probabilities(unit[:1], unit[:1], unit[:1], 100.0)
    torch.testing.assert_close(found, torch.tensor([0.5]))


# --- the stage ---------------------------------------------------------------------------------

TEXTS = {"black": "чёрный квадрат", "red": "красный круг"}


def test_rows_are_scored_in_order_with_ranks_within_each_prompt(scorer: Scorer) -> None:
    rows = pixel_rows("black", "red", "black", "black", "red")
    steps: list[tuple[int, int]] = []
    found = score_rows(
        scorer, rows, TEXTS, ScoreConfig(batch_size=2), lambda *step: steps.append(step)
    )
    assert [row.image_id for row in found] == [row.image_id for row in rows]
    for row, source in zip(found, rows, strict=True):
        assert source.image is not None
        image = Image.open(io.BytesIO(source.image))
        expected = scorer.score([image], [TEXTS[row.prompt_id]])
        assert row.score == pytest.approx(expected.item(), abs=1e-6)
        assert row.probability is None and row.unsafe is None
    for prompt_id, count in (("black", 3), ("red", 2)):
        own = sorted((row.rank, -row.score) for row in found if row.prompt_id == prompt_id)
        assert [rank for rank, _ in own] == list(range(1, count + 1))
        assert [score for _, score in own] == sorted(score for _, score in own)
    assert steps[-1] == (5, 5) and steps == sorted(steps)
    assert score_rows(scorer, [], {}, ScoreConfig()) == []


def test_images_are_compared_with_all_unsafe_texts(scorer: Scorer) -> None:
    rows = pixel_rows("black", "red")
    section = ScoreConfig(unsafe_texts=tuple(TEXTS.values()))
    found = score_rows(scorer, rows, TEXTS, section)
    # The text of each prompt is among the unsafe ones, so no image is less similar than to that.
    assert all(row.unsafe is not None and row.unsafe >= row.score - 1e-6 for row in found)
    plain = score_rows(scorer, rows, TEXTS, ScoreConfig())
    assert [row.score for row in found] == [row.score for row in plain]


def test_negative_texts_give_a_probability(scorer: Scorer) -> None:
    rows = pixel_rows("black", "red")
    (same, other) = score_rows(scorer, rows, TEXTS, ScoreConfig(negative_texts=(TEXTS["black"],)))
    assert same.probability == pytest.approx(0.5)
    assert other.probability is not None and 0 < other.probability < 1
    assert other.probability != pytest.approx(0.5)
