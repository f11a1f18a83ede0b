"""One image made again is bit for bit the published one, or it is said how it differs and why."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from rudalle_lib.checks.replay import recorded_batch_rows, replay
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.frames import read_images, read_rejects
from rudalle_lib.dataset.manifests import read_shard_manifest, require_run_manifest
from rudalle_lib.errors import ConfigError, RudalleError, StorageError
from rudalle_lib.prompts.plan import read_plan
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finish, finished_below, tiny_config
from tests.support.tiny_stack import write_tiny_stack


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run that tests only look at."""
    return finished_below(tmp_path_factory.mktemp("replay"))


def test_every_published_image_can_be_made_again(config: RunConfig) -> None:
    storage, images = Storage(config.output), read_images(config.output)
    for image_id, row in images.iloc[::3].iterrows():
        made = replay(storage, str(image_id))
        assert made.identical and made.published and made.differences == []
        assert made.content == storage.read_bytes(row["path"]) and made.suffix == "png"


def test_an_image_is_drawn_with_the_rows_of_its_run(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(config.output)
    run, (first, second) = require_run_manifest(storage), read_plan(storage)[:2]
    manifest = read_shard_manifest(storage, first.index)
    assert manifest is not None
    assert run.batch_rows == manifest.stages["generate"].batch_rows == 8  # generate.batch_size
    assert recorded_batch_rows(storage, run, first) == 8
    drawn_before = replace(run, batch_rows=0)
    monkeypatch.setattr("rudalle_lib.checks.replay.read_shard_manifest", lambda *_: None)
    assert recorded_batch_rows(storage, run, second) == 8
    assert recorded_batch_rows(storage, drawn_before, second) == 0


def test_images_in_bfloat16_are_made_again_in_bfloat16(config: RunConfig, tmp_path: Path) -> None:
    faster = {"dtype": "bfloat16", "batch_size": 1}  # the shape of a batch may show in a last bit
    decode, upscale = (part.model_copy(update=faster) for part in (config.decode, config.upscale))
    output = str(tmp_path / "out")
    other = config.model_copy(update={"output": output, "decode": decode, "upscale": upscale})
    finish(other)
    exact, found = read_images(config.output), read_images(output)
    for image_id in found.index[::3]:
        assert replay(Storage(output), str(image_id)).identical
    assert any(found.sha256[name] != exact.sha256[name] for name in found.index)


def test_a_rejected_image_can_be_made_again(config: RunConfig) -> None:
    rejects = read_rejects(config.output)
    image_id = str(rejects[rejects.reason == "not_in_best_k"].image_id.iloc[0])
    made = replay(Storage(config.output), image_id)
    assert made.identical and not made.published


def test_on_s3_from_what_lies_there_alone(config: RunConfig, s3_url: str, tmp_path: Path) -> None:
    finish(config.model_copy(update={"output": s3_url}))
    storage = Storage(s3_url)
    for path in storage.list("stages"):
        storage.delete(path)
    image_id = str(read_images(s3_url).index[-1])
    assert replay(storage, image_id).identical


def test_other_weights_are_named_and_the_difference_is_counted(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, str(tmp_path / "out"))
    finish(config)
    image_id = str(read_images(config.output).index[0])
    write_tiny_stack(tmp_path / "weights", seed=1)
    made = replay(Storage(config.output), image_id)
    assert made.identical is False
    told = "; ".join(made.differences)
    assert "other weights for generate than the run had" in told
    assert re.search(r"\d+ of 16 image tokens differ; [\d,]+ of 12,288 pixel values", told)


@pytest.mark.parametrize("name", ["", "nonsense", "nonsense-000", "-000", "../etc/passwd-000"])
def test_an_image_that_is_not_there_is_named(config: RunConfig, name: str) -> None:
    with pytest.raises(ConfigError, match=f"There is no image {name!r} in .*expected the id"):
        replay(Storage(config.output), name)


def test_a_replica_that_was_not_drawn_is_named(config: RunConfig) -> None:
    prompt_id = read_images(config.output).prompt_id.iloc[0]
    with pytest.raises(ConfigError, match="there is no number 99"):
        replay(Storage(config.output), f"{prompt_id}-099")


def test_a_prompt_without_translation_says_so(config: RunConfig) -> None:
    rejects = read_rejects(config.output)
    prompt_id = rejects[rejects.reason == "translation_failed"].prompt_id.iloc[0]
    with pytest.raises(RudalleError, match="translated from 'en': .*'a red square"):
        replay(Storage(config.output), f"{prompt_id}-000")


def test_an_output_without_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="There is no finished run in"):
        replay(Storage(str(tmp_path)), "a-000")


def test_the_command_is_the_one_that_the_gallery_shows(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = Storage(config.output).read_bytes("gallery/index.html").decode()
    found = re.search(r'"replay":("(?:[^"\\]|\\.)*")', page)
    assert found is not None
    image_id = str(read_images(config.output).index[0])
    command = json.loads(found[1]).replace("{id}", image_id)
    program, *arguments = shlex.split(command)
    assert program == "rudalle-flows"
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert f"{image_id}.png: identical to the published file." in done.stdout
    assert (tmp_path / f"{image_id}.png").is_file()
