"""Marian networks load from their published layout, and errors name the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rudalle_lib.errors import WeightsError
from rudalle_lib.weights.marian import load_marian
from tests.support.tiny_marian import PAIRS


def test_loading_and_translating_are_silent(
    marian: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    load_marian(marian).translate([PAIRS[0][0], "a " * 2000])
    captured = capfd.readouterr()
    assert captured.out + captured.err + caplog.text == ""


def test_the_layout_of_opus_mt_loads(marian: Path, tmp_path: Path) -> None:
    """`pytorch_model.bin` with all names of the shared embeddings and without sinusoidal tables."""
    from transformers import MarianConfig, MarianMTModel

    config = json.loads((marian / "config.json").read_text())
    model = MarianMTModel(MarianConfig.from_dict(config))
    ours = load_marian(marian).model.state_dict()
    model.load_state_dict(ours)
    for name in ("config.json", "source.spm", "target.spm", "vocab.json"):
        (tmp_path / name).write_bytes((marian / name).read_bytes())
    state = {k: v for k, v in model.state_dict().items() if "positions" not in k}
    torch.save(state, tmp_path / "pytorch_model.bin")
    loaded = load_marian(tmp_path).model.state_dict()
    assert all(torch.equal(loaded[name], ours[name]) for name in ours)


def test_missing_and_broken_files_are_named(marian: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="source.spm.*vocab.json"):
        load_marian(tmp_path)
    for name in ("source.spm", "target.spm", "vocab.json", "config.json"):
        (tmp_path / name).write_bytes((marian / name).read_bytes())
    with pytest.raises(WeightsError, match="has no weights: expected .*model.safetensors"):
        load_marian(tmp_path)
    tensors = load_file(marian / "model.safetensors")
    key = "model.encoder.layers.0.fc1.weight"
    save_file({**tensors, key: tensors[key][:5].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=rf"{key}: expected \[96, 48\], found \[5, 48\]"):
        load_marian(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match="cannot read .*config.json"):
        load_marian(tmp_path)
    (tmp_path / "source.spm").write_bytes(b"not a model")
    with pytest.raises(WeightsError, match="cannot read the translator's vocabulary"):
        load_marian(tmp_path)
