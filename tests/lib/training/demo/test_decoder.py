"""Training of the demo decoder: data, optimizers, resuming, and an export that draws."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

import rudalle_lib.demo
from rudalle_lib.demo.scenes import has_held_out, random_scene
from rudalle_lib.models.dalle import Dalle
from rudalle_lib.text.tokenizer import Tokenizer
from rudalle_lib.training.demo import decoder, vqgan
from rudalle_lib.training.demo.samples import draw_samples
from rudalle_lib.training.figures import read_figures
from rudalle_lib.training.muon import Muon

WEIGHTS = Path(rudalle_lib.demo.__file__).parent / "weights"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(WEIGHTS / "demo-dalle" / "bpe.model")


def test_training_resumes_and_the_export_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "BATCH", 2)
    monkeypatch.setattr(decoder, "CAPTIONS", 300)
    work, out = tmp_path / "work", tmp_path / "decoder"
    for steps in ("1", "2"):
        decoder.main(["--work", str(work), "--out", str(out), "--steps", steps])
    assert {path.name for path in out.iterdir()} == {
        "MODEL_CARD.md", "bpe.model", "config.json", "model.safetensors",
    }  # fmt: skip
    assert torch.load(work / "checkpoint.pt", weights_only=True)["step"] == 2
    assert [line["step"] for line in read_figures(work)] == [0, 1]
    scenes = [random_scene(random.Random(0))]
    images = draw_samples(out, vqgan.load_vqgan(WEIGHTS / "demo-vqgan"), scenes, seed=1)
    assert images.shape == (1, 128, 128, 3)


def test_batches_are_determined_by_seed_and_step(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "BATCH", 4)
    first, second, again = (decoder.make_batch(tokenizer, 1, step, range(4)) for step in (0, 1, 1))
    assert first["text"].shape == (4, decoder.TEXT_LENGTH)
    assert first["image"].shape == (4, 256)
    assert all(torch.equal(second[name], again[name]) for name in second)
    assert not torch.equal(first["image"], second["image"])
    part = decoder.make_batch(tokenizer, 1, 1, range(1, 3))
    assert all(torch.equal(part[name], second[name][1:3]) for name in part)


def test_training_scenes_have_no_held_out_combination() -> None:
    scenes = [decoder.scene_of(1, index)[0] for index in range(500)]
    assert not any(map(has_held_out, scenes))
    assert len(set(scenes)) > 400


def test_training_texts_include_empty_and_partial_captions() -> None:
    scene, rng = decoder.scene_of(1, 0)
    texts = [decoder._training_text(scene, rng) for _ in range(400)]
    assert 0.02 < texts.count("") / len(texts) < 0.1
    assert any("фоне" not in text for text in texts if text)
    assert sum("фоне" in text for text in texts) > 200


def test_each_parameter_has_exactly_one_optimizer() -> None:
    model = Dalle(decoder.make_config(64))
    muon, adam = decoder.make_optimizers(model)
    assert isinstance(muon, Muon)
    matrices, others = (
        [p for group in optimizer.param_groups for p in group["params"]]
        for optimizer in (muon, adam)
    )
    assert all(p.dim() == 2 for p in matrices)
    assert sorted(map(id, [*matrices, *others])) == sorted(map(id, model.parameters()))


def test_agreement_of_an_untrained_decoder_is_zero(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    model = Dalle(decoder.make_config(tokenizer.vocab_size))
    assert decoder.agreement(model, tokenizer, 2) == 0
