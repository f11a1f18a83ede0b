"""Tokenizers are trained reproducibly, and errors name the file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from rudalle_lib.demo.captions import caption_variant
from rudalle_lib.demo.scenes import random_scene
from rudalle_lib.errors import ConfigError
from rudalle_lib.text.tokenizer import Tokenizer

pytest.importorskip("youtokentome")

from rudalle_lib.training.demo.tokenizer import train_tokenizer


def test_training_is_quiet_and_reproducible(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(1)
    captions = [caption_variant(random_scene(rng), rng).lower() for _ in range(2000)]
    (tmp_path / "text.txt").write_text("\n".join(captions), "utf-8")
    first, second = (
        train_tokenizer(tmp_path / "text.txt", tmp_path / name, 128) for name in ("a", "b")
    )
    assert first.read_bytes() == second.read_bytes()
    assert Tokenizer.load(first).vocab_size == 128
    assert capfd.readouterr().err == ""


def test_training_errors_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no text file"):
        train_tokenizer(tmp_path / "absent.txt", tmp_path / "bpe.model", 256)
    (tmp_path / "text.txt").write_text("синий квадрат\n", "utf-8")
    with pytest.raises(ConfigError, match="cannot train a tokenizer of 5 pieces"):
        train_tokenizer(tmp_path / "text.txt", tmp_path / "bpe.model", 5)
