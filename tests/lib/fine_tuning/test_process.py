"""What a process of a training does: samples, TensorBoard's files, and learning."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from PIL import Image

from rudalle_lib.checks.models import check_model
from rudalle_lib.config.fine_tune import EvaluationConfig, FineTuneConfig
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.dataset.splits import place_of
from rudalle_lib.errors import DataError, TrainingError
from rudalle_lib.fine_tuning.export import write_weights
from rudalle_lib.fine_tuning.networks import learnt_network
from rudalle_lib.fine_tuning.process import Places, make_task, run
from rudalle_lib.fine_tuning.record import open_data
from rudalle_lib.storage.storage import Storage
from rudalle_lib.training import processes
from rudalle_lib.training.data.encode import encode_data
from rudalle_lib.training.decoder import DecoderTask
from rudalle_lib.training.figures import read_figures
from rudalle_lib.training.launch import launch
from rudalle_lib.training.trainer import train
from rudalle_lib.weights.files import resolve_files
from tests.support.image_data import write_folder
from tests.support.tiny_training import settings, tiny_decoder, tiny_examples

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


def test_data_that_is_all_held_out_is_an_error(make: Make, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", 3)
    for text in folder.glob("*.txt"):
        text.write_text("белая полоса 7", encoding="utf-8")
    held_out = place_of("белая полоса 7") + 1e-6
    encoding = {"held_out": held_out}
    assert held_out < 0.5, "a caption that this share holds out"
    config = make(tmp_path / "out", data=[{"uri": str(folder)}], encoding=encoding)
    encode_data(config, Storage(config.output))
    with pytest.raises(DataError, match="all 3 images are held out.*lower encoding.held_out"):
        make_task(config, tmp_path)


def train_both(configs: Sequence[FineTuneConfig]) -> None:
    """Train by several processes, one configuration after the other."""
    for config in configs:
        run(config, Places(config.output, f"{config.output}/work"))


@pytest.fixture(scope="module")
def spread(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trainings that hardly learn, by one process and, spread over two, by FSDP."""
    folder = tmp_path_factory.mktemp("spread")
    for number, count in (("one", 1), ("two", 2)):
        configs = []
        for method in ("all", "lora"):
            training = {
                "steps": 2, "batch_size": 2, "learning_rate": 1e-12, "dtype": "bfloat16",
                "method": method, "average": 0.5, "sharding": "fsdp",
            }  # fmt: skip
            configs.append(make(folder / number / method, training=training))
            encode_data(configs[-1], Storage(configs[-1].output))
        launch(train_both, (configs,), count, threads=1)
    return folder


@pytest.mark.parametrize("method", ["all", "lora"])
def test_a_network_that_is_spread_draws_the_same_samples(spread: Path, method: str) -> None:
    one, two = (spread / number / method / "samples" for number in ("one", "two"))
    names = [f"step-0000000{step}.png" for step in (1, 2)]
    for name in names:
        assert (two / name).read_bytes() == (one / name).read_bytes()
    assert sorted(path.name for path in two.iterdir()) == names


class Slow(DecoderTask):
    """A decoder whose samples take two seconds."""

    def evaluate(self, step: int) -> dict[str, float]:
        """Wait."""
        time.sleep(2)
        return {}


def learn_slowly(work: str, patience: float | None) -> None:
    """Train in one of several processes, with less patience than they have by default."""
    if patience is not None:
        processes.PATIENCE = timedelta(seconds=patience)
    training = settings(steps=1)
    task = Slow(tiny_decoder(), tiny_examples(), training, held_out=tiny_examples(2))
    train(task, training, work=Path(work), evaluation=EvaluationConfig(every=1), device="cpu")


def test_processes_wait_for_the_samples_of_the_first(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="Process . of 2 has failed"):
        launch(learn_slowly, (str(tmp_path / "impatient"), 1.0), 2, threads=1)
    launch(learn_slowly, (str(tmp_path / "patient"), None), 2, threads=1)
    days = processes.PATIENCE.days
    assert days > 1, "samples of a large network on a CPU take hours"
