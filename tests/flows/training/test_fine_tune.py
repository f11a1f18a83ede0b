"""A fine-tuning of tiny models on a real Prefect server: complete, resumable, used by a run."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from flows.cli import app
from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.errors import StorageError
from rudalle_lib.fine_tuning.record import FineTuneRecord, read_record
from rudalle_lib.storage.storage import Storage
from tasks.training.events import Encoded, Event, Exporting, Stepped, listener
from tests.support.image_data import write_folder
from tests.support.tiny_run import configure, snapshot

pytestmark = pytest.mark.usefixtures("prefect_server")

STEPS = 4
TRAINING = {
    "steps": STEPS, "batch_size": 4, "warmup_steps": 1, "dtype": "float32", "average": 0.5,
    "checkpoint_seconds": 0,
}  # fmt: skip
OTHERS = {"steps": 2, "batch_size": 4, "dtype": "float32", "learning_rate": 0.01}
"""For a VQ-GAN and a ruCLIP, so that even their first steps change what they compute."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images with captions, and one without."""
    folder = write_folder(tmp_path_factory.mktemp("images"), 12)
    (folder / "000.txt").write_text("")
    return folder


@pytest.fixture(scope="module")
def make(tiny_stack: Path, images: Path) -> Callable[..., FineTuneConfig]:
    """Makes a configuration for an output."""

    def config(output: Path | str, **changes: Any) -> FineTuneConfig:
        return FineTuneConfig.model_validate({
            "name": "mine",
            "seed": 5,
            "output": str(output),
            "data": [{"uri": str(images)}],
            "weights": {"folder": str(tiny_stack), "offline": True},
            "encoding": {"shard_size": 5, "held_out": 0.3},
            "training": TRAINING,
            "evaluation": {"every": 2, "samples": 2},
            "runtime": {"devices": "cpu", "threads": 1},
            **changes,
        })  # fmt: skip

    return config


def run(config: FineTuneConfig) -> tuple[FineTuneRecord, list[Event]]:
    """Run the flow; returns its record and what it told."""
    from flows.training.fine_tune import fine_tune

    events: list[Event] = []
    token = listener.set(events.append)
    try:
        return fine_tune(config), events
    finally:
        listener.reset(token)


@pytest.fixture(scope="module")
def finished(
    prefect_server: None, make: Callable[..., FineTuneConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, FineTuneRecord, list[Event]]:  # fmt: skip
    """A finished fine-tuning: its output, its record, and what it told; tests only read it."""
    output = tmp_path_factory.mktemp("training") / "out"
    return output, *run(make(output))


def test_everything_is_in_the_output(finished: tuple[Path, FineTuneRecord, list[Event]]) -> None:
    output, record, events = finished
    figures = [json.loads(line) for line in (output / "figures.jsonl").read_text().splitlines()]
    assert [one["step"] for one in figures] == list(range(STEPS))
    assert sorted(path.name for path in (output / "samples").iterdir()) == [
        "step-00000002.png", "step-00000004.png",
    ]  # fmt: skip
    with Image.open(output / "samples" / "step-00000004.png") as sheet:
        assert sheet.format == "PNG"
    assert (output / "losses.svg").read_text().startswith("<svg")
    assert any((output / "tensorboard").iterdir())
    names = {path.name for path in (output / "weights" / "mine").iterdir()}
    assert names == {"model.safetensors", "config.json", "bpe.model", "MODEL_CARD.md"}
    assert set(record.files) == names
    (kept,) = (output / "checkpoints").iterdir()
    assert {path.name for path in kept.iterdir()} == {
        "learnt.pt", "trained.json", "figures.jsonl",
    }  # fmt: skip
    assert record == read_record(Storage(str(output)))
    assert (record.images, record.rejected, record.steps) == (11, {"no_caption": 1}, STEPS)
    assert 0 < record.held_out < 11 and set(record.held_out_losses) == {"2", "4"}
    assert record.last["loss"] < record.first["loss"]
    steps = [event.step for event in events if isinstance(event, Stepped)]
    assert steps == list(range(1, STEPS + 1))
    assert isinstance(events[0], Encoded) and isinstance(events[-1], Exporting)


def test_a_finished_one_does_nothing(
    finished: tuple[Path, FineTuneRecord, list[Event]], make: Callable[..., FineTuneConfig]
) -> None:
    output, record, _ = finished
    before = snapshot(output)
    assert run(make(output)) == (record, [])
    assert snapshot(output) == before


def test_one_that_was_killed_goes_on_and_learns_the_same(
    finished: tuple[Path, FineTuneRecord, list[Event]],
    make: Callable[..., FineTuneConfig],
    tmp_path: Path,
) -> None:
    """The processes of the training are killed after a step, and the flow fails."""
    from flows.training.fine_tune import fine_tune

    def kill(event: Event) -> None:
        if isinstance(event, Stepped) and event.step >= 2:
            raise StorageError("killed")

    config = make(tmp_path / "out")
    token = listener.set(kill)
    with pytest.raises(StorageError, match="killed"):
        fine_tune(config)
    listener.reset(token)
    assert not (tmp_path / "out" / "fine_tune.json").exists()
    encoded = snapshot(tmp_path / "out" / "stages")
    record, events = run(config)
    assert snapshot(tmp_path / "out" / "stages") == encoded
    assert all(event.reused for event in events if isinstance(event, Encoded) and event.shards)
    assert record.files["model.safetensors"] == finished[1].files["model.safetensors"]
    assert record.held_out_losses == finished[1].held_out_losses


def test_other_settings_train_anew_on_the_encoded_shards(
    finished: tuple[Path, FineTuneRecord, list[Event]],
    make: Callable[..., FineTuneConfig],
    tmp_path: Path,
) -> None:
    output = shutil.copytree(finished[0], tmp_path / "out")
    encoded = snapshot(output / "stages")
    lora = {**TRAINING, "method": "lora", "dtype": "bfloat16", "average": 0, "steps": 2}
    record, _ = run(make(output, training=lora))
    assert snapshot(output / "stages") == encoded
    assert record.steps == 2 and len(list((output / "checkpoints").iterdir())) == 2
    assert [path.name for path in (output / "samples").iterdir()] == ["step-00000002.png"]
    assert record.files["config.json"] == finished[1].files["config.json"]
    assert record.files["model.safetensors"] != finished[1].files["model.safetensors"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("trains", ["decoder", "vqgan", "scorer"])
def test_a_run_uses_the_weights_by_name_and_replays_bit_for_bit(
    finished: tuple[Path, FineTuneRecord, list[Event]],
    make: Callable[..., FineTuneConfig],
    settings: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trains: str,
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    record = finished[1]
    if trains != "decoder":
        record, _ = run(make(tmp_path / "training", trains=trains, training=OTHERS))
    assert record.trains == trains and "MODEL_CARD.md" in record.files
    usage = yaml.safe_load(record.usage())
    config = configure(settings, tmp_path / "out", **usage)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert "mine works" in call("models", "verify", "mine", "--config", path).stdout
    assert call("run", path).exit_code == 0
    used = json.loads((tmp_path / "out" / "run.json").read_text())["weights"]
    assert "mine" in used and record.base not in used
    metadata = min((tmp_path / "out" / "data" / "metadata").iterdir())
    image = pq.read_table(metadata).column("image_id").to_pylist()[0]
    again = call("replay", tmp_path / "out", image, "--to", tmp_path / "again.png")
    assert "identical to the published file" in again.stdout


def test_a_decoder_learns_the_tokens_of_a_fine_tuned_vqgan_and_a_run_uses_both(
    make: Callable[..., FineTuneConfig], settings: dict[str, object], tmp_path: Path
) -> None:
    vqgan, _ = run(make(tmp_path / "vqgan", name="eyes", trains="vqgan", training=OTHERS))
    weights: dict[str, Any] = yaml.safe_load(vqgan.usage())["weights"]
    stack = make(tmp_path).weights.model_dump()
    decoder, _ = run(make(tmp_path / "decoder", vqgan="eyes", weights={**stack, **weights}))
    assert "eyes" in decoder.base_weights and vqgan.base not in decoder.base_weights
    usage = yaml.safe_load(decoder.usage())
    assert usage["decode"] == {"model": "eyes"} and set(usage["weights"]["models"]) == {
        "eyes", "mine"
    }  # fmt: skip
    config = configure(settings, tmp_path / "out", **usage)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert call("run", path).exit_code == 0
    used = json.loads((tmp_path / "out" / "run.json").read_text())["weights"]
    assert {"eyes", "mine"} <= set(used) and not {vqgan.base, decoder.base} & set(used)


@pytest.mark.slow
def test_an_output_on_s3_has_the_same_files_and_another_machine_goes_on(
    finished: tuple[Path, FineTuneRecord, list[Event]],
    make: Callable[..., FineTuneConfig],
    s3_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flows.training.fine_tune import fine_tune

    def kill(event: Event) -> None:
        if isinstance(event, Stepped) and event.step >= 3:
            raise StorageError("killed")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    config = make(f"{s3_url}/out")
    token = listener.set(kill)
    with pytest.raises(StorageError, match="killed"):
        fine_tune(config)
    listener.reset(token)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    record, _ = run(config)
    assert record.files["model.safetensors"] == finished[1].files["model.safetensors"]
    there = set(Storage(f"{s3_url}/out").list())
    assert {f"weights/mine/{name}" for name in record.files} <= there
    assert {"fine_tune.json", "figures.jsonl", "losses.svg", "samples/step-00000004.png"} <= there
    assert not any(name.endswith("checkpoint.pt") for name in there)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_with_a_checkpoint_and_a_sentence(
    make: Callable[..., FineTuneConfig], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    endless = {**TRAINING, "steps": 100_000, "checkpoint_seconds": 3600}
    config = make(tmp_path / "out", training=endless, evaluation={"every": 100_000})
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "flows.cli", "fine-tune", str(tmp_path / "mine.yaml")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not list((tmp_path / "out").glob("checkpoints/*/figures.jsonl")):
            assert process.poll() is None
            time.sleep(0.2)
        assert not list((tmp_path / "out").glob("checkpoints/*/checkpoint.pt"))
        process.send_signal(number)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == code
    assert said.splitlines()[-1].endswith("run the same command again to continue.")
    assert list((tmp_path / "out").glob("checkpoints/*/checkpoint.pt"))
