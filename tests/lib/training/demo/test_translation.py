"""Training of the translator: data, and a short training that is stopped, resumed and exported."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from rudalle_lib.demo.captions import english_caption, russian_caption
from rudalle_lib.demo.scenes import Scene, has_held_out, random_scene
from rudalle_lib.training.demo import translation
from rudalle_lib.training.demo.translation import (
    NO_LABEL,
    caption_pair,
    caption_pairs,
    encode_batch,
    main,
    train_vocabulary,
)
from rudalle_lib.training.figures import read_figures
from rudalle_lib.weights.marian import load_marian, load_tokenizer


def test_pairs_are_determined_by_the_seed_and_include_all_variants() -> None:
    pairs = list(caption_pairs(1, 600))
    assert pairs == list(caption_pairs(1, 600)) != list(caption_pairs(2, 600))
    english = " ".join(text for text, _ in pairs)
    for words in (
        "large",
        "tiny",
        "purple",
        "gray",
        "stripe",
        "left of",
        "over",
        "the ",
        "against",
    ):
        assert words in english
    assert any("фоне" not in russian for _, russian in pairs)  # the caption has no background
    assert not any(text.endswith(("on", ",")) for text, _ in pairs)


def test_no_pair_has_a_held_out_combination(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Scene] = []

    def record(scene: Scene, rng: random.Random) -> tuple[str, str]:
        seen.append(scene)
        return caption_pair(scene, rng)

    monkeypatch.setattr(translation, "caption_pair", record)
    list(caption_pairs(3, 2000))
    assert len(seen) == 2000
    assert not any(has_held_out(scene) for scene in seen)


def test_each_word_of_a_canonical_caption_is_one_piece(tmp_path: Path) -> None:
    train_vocabulary(tmp_path, seed=1)
    tokenizer = load_tokenizer(tmp_path)
    rng = random.Random(4)
    for scene in (random_scene(rng, held_out=True) for _ in range(50)):
        english, russian = english_caption(scene), russian_caption(scene)
        batch = encode_batch(tokenizer, [(english, russian)])
        assert batch["input_ids"].shape[1] == len(english.split()) + 1  # and EOS
        assert batch["labels"].shape[1] == len(russian.split()) + 1
        assert tokenizer.unk_token_id not in batch["input_ids"]
        assert NO_LABEL not in batch["labels"]


def test_resumed_training_ends_like_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translation, "BATCH", 4)

    def run(name: str, *steps: int) -> dict[str, torch.Tensor]:
        for count in steps:
            arguments = f"--out {tmp_path}/{name} --work {tmp_path}/{name}-work --examples 4"
            main([*arguments.split(), "--steps", str(count)])
        return load_marian(tmp_path / name).model.state_dict()

    monkeypatch.setattr(
        translation, "cosine", lambda *_: 1.0
    )  # the schedule depends on the number of steps
    whole, resumed = run("whole", 4), run("resumed", 2, 4)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    folder = tmp_path / "whole"
    assert (folder / "model.safetensors").stat().st_size < 3e6
    assert "translated exactly (4 each)" in (folder / "MODEL_CARD.md").read_text()
    steps = [line["step"] for line in read_figures(tmp_path / "resumed-work")]
    assert steps == [0, 1, 2, 3]
