"""Fine-tuning of ruCLIP: matching pairs score higher, equal captions are no wrong answers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rudalle_lib.config.fine_tune import TrainingConfig
from rudalle_lib.errors import SettingsError
from rudalle_lib.models.ruclip import RuClip
from rudalle_lib.training.decoder import TensorExamples
from rudalle_lib.training.scorer import ScorerTask, contrastive_loss, equal_rows
from rudalle_lib.training.trainer import train
from tests.support.tiny_scorer import CONFIG, LetterTokenizer, make_scorer

COLOURS = {
    "red": (220, 20, 30), "green": (20, 200, 60), "blue": (20, 40, 220),
    "white": (250, 250, 250), "black": (10, 10, 10), "yellow": (240, 220, 30),
}  # fmt: skip
"""Captions, and the colour of their images."""


def pairs(count: int, seed: int = 0) -> TensorExamples:
    """Images of one noisy colour each, with its name."""
    generator = torch.Generator().manual_seed(seed)
    names = [list(COLOURS)[i % len(COLOURS)] for i in range(count)]
    plain = torch.tensor([COLOURS[name] for name in names])[:, :, None, None]
    noise = torch.randint(-20, 21, (count, 3, 16, 16), generator=generator)
    tokenizer = LetterTokenizer()
    text = [tokenizer.encode_clip(name, CONFIG.context_length).ids for name in names]
    return TensorExamples(
        {"text": torch.tensor(text), "image": (plain + noise).clamp(0, 255).to(torch.uint8)}
    )


def tiny_scorer() -> RuClip:
    model = make_scorer().model
    assert isinstance(model, RuClip)
    return model


def settings(**changes: object) -> TrainingConfig:
    given = {"steps": 60, "batch_size": 12, "learning_rate": 5e-3, "warmup_steps": 5}
    return TrainingConfig.model_validate({**given, "dtype": "float32", **changes})


def scores(model: RuClip) -> Tensor:
    """Scores of an image of each colour with each caption, as a run computes them."""
    scorer = make_scorer()
    scorer.model.load_state_dict(model.state_dict(), strict=True)  # the published layout
    images = scorer.image_features(pairs(len(COLOURS), seed=1).tensors["image"])
    return images @ scorer.text_features(list(COLOURS)).T


def test_matching_pairs_score_above_others(tmp_path: Path) -> None:
    training, model = settings(), tiny_scorer()
    task = ScorerTask(model, pairs(48), training, held_out=pairs(12, seed=2))
    losses: list[float] = []
    train(
        task, training, work=tmp_path, device="cpu",
        on_figures=lambda _, figures: losses.append(figures["loss"]),
    )  # fmt: skip
    assert losses[-1] < 0.3 * losses[0]
    found = scores(model)
    others = found.clone().fill_diagonal_(-1.0)
    assert (found.diagonal() > others.max(1).values).all()
    assert (found.diagonal() > others.max(0).values).all()


def test_equal_captions_are_no_wrong_answers() -> None:
    text = torch.tensor([[2, 5, 3], [2, 6, 3], [2, 5, 3]])
    equal = equal_rows(text)
    assert equal.tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    features = torch.eye(3)
    features[2] = features[0]  # the same image with the same caption
    loss, right = contrastive_loss(features, features, torch.tensor(100.0), equal)
    assert loss < 1e-6 and right == 1
    loss, _ = contrastive_loss(features, features, torch.tensor(100.0), torch.eye(3) > 0)
    assert loss.item() == pytest.approx(2 / 3 * math.log(2), rel=1e-4)


def test_loss_is_the_cross_entropy_in_both_directions() -> None:
    image, text = torch.nn.functional.normalize(torch.randn(2, 5, 8), dim=2)
    loss, _ = contrastive_loss(image, text, torch.tensor(7.0), torch.eye(5) > 0)
    logits = 7 * image @ text.T
    own = torch.arange(5)
    rows, columns = logits.log_softmax(1)[own, own], logits.log_softmax(0)[own, own]
    assert loss.item() == pytest.approx(-(rows.mean() + columns.mean()).item() / 2, rel=1e-5)


def test_the_temperature_stays_in_its_range() -> None:
    model = tiny_scorer()
    task = ScorerTask(model, pairs(4), settings())
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    task.after_step(0)
    assert model.logit_scale.exp().item() == pytest.approx(100.0)


def test_gains_biases_and_temperature_have_no_weight_decay() -> None:
    model = tiny_scorer()
    (optimizer,) = ScorerTask(model, pairs(4), settings()).optimizers(settings(weight_decay=0.2))
    decayed, others = optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.2, 0.0)
    assert any(p is model.logit_scale for p in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_a_batch_has_to_be_whole_and_of_several(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="at least 2"):
        ScorerTask(tiny_scorer(), pairs(4), settings(batch_size=1))
    parts = settings(images_at_once=4)
    with pytest.raises(SettingsError, match="at once"):
        train(ScorerTask(tiny_scorer(), pairs(24), parts), parts, work=tmp_path, device="cpu")
