"""What a process of a training does: samples, TensorBoard's files, and learning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from rudalle_lib.checks.models import check_model
from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.fine_tuning.export import write_weights
from rudalle_lib.fine_tuning.networks import learnt_network
from rudalle_lib.fine_tuning.process import Places, run
from rudalle_lib.fine_tuning.record import open_data
from rudalle_lib.storage.storage import Storage
from rudalle_lib.training.data.encode import encode_data
from rudalle_lib.training.figures import read_figures
from rudalle_lib.weights.files import resolve_files

Make = Callable[..., FineTuneConfig]


@pytest.mark.parametrize("trains", ["vqgan", "scorer"])
def test_other_networks_learn_and_are_exported(make: Make, tmp_path: Path, trains: str) -> None:
    training = {
        "steps": 2, "batch_size": 3, "dtype": "float32", "learning_rate": 0.01,
        "vqgan": {"split_every": None},
    }  # fmt: skip
    config = make(tmp_path, trains=trains, training=training)
    encode_data(config, Storage(config.output))
    run(config, Places(str(tmp_path), str(tmp_path / "work")))
    assert len(read_figures(tmp_path / "work")) == 2
    assert (tmp_path / "samples" / "step-00000002.png").exists() == (trains == "vqgan")
    network = learnt_network(config, tmp_path / "work" / "learnt.pt")
    write_weights(network, config, tmp_path / "mine")
    models = {"mine": {"base": config.base_model, "folder": str(tmp_path / "mine")}}
    weights = {**config.weights.model_dump(), "models": models}
    check_model("mine", WeightsConfig.model_validate(weights))
    entry = config.weights.find(config.base_model)
    base = resolve_files(entry, config.weights)["weights"].read_bytes()
    assert (tmp_path / "mine" / "model.safetensors").read_bytes() != base


@pytest.mark.parametrize("method", ["all", "lora"])
def test_it_learns_and_draws_samples(make: Make, tmp_path: Path, method: str) -> None:
    training = {
        "steps": 2, "batch_size": 2, "method": method, "empty_captions": 0.5,
        "dtype": "bfloat16" if method == "lora" else "float32",
    }  # fmt: skip
    config = make(tmp_path, training=training)
    encode_data(config, Storage(config.output))
    run(config, Places(str(tmp_path), str(tmp_path / "work")))
    figures = read_figures(tmp_path / "work")
    assert len(figures) == 2 and all("held_out_loss" in one for one in figures)
    with Image.open(tmp_path / "samples" / "step-00000002.png") as sheet:
        assert sheet.width > 1000
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    data, split = open_data(config)
    assert data.rows == 8 == len(split.train) + len(split.held_out)
