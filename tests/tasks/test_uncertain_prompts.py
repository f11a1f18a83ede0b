"""Prompts with an uncertain translation are not drawn, whatever was drawn before."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from flows.cli.outlook import look_ahead
from rudalle_lib.checks.audit import audit_output
from rudalle_lib.checks.replay import replay
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.frames import read_images, read_rejects
from rudalle_lib.dataset.manifests import read_shard_manifests
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finish, tiny_config
from tests.support.image_numbers import Killed, counting_images, killed_after, published
from tests.support.tiny_run import snapshot

TABLE = """prompt_id,prompt,images
black,чёрный квадрат на белом фоне,
sure,a red square on a white background,2
unsure,a fluffy cat sleeps under an old sofa,3
other,a small blue circle on a grey background,
"""
MARIAN = Path(__file__).resolve().parents[2] / "rudalle_lib" / "demo" / "weights" / "demo-marian"
ROUNDS = {"images": 1, "until_accepted": 1, "max_images": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uncertain")


def configured(folder: Path, output: str, least: float | None, rounds: bool = False) -> RunConfig:
    """Three English prompts and a Russian one, two per shard, with the demo's translator."""
    settings = tiny_config(folder, str(folder / output), TABLE).model_dump(mode="json")
    shutil.rmtree(folder / "weights" / "demo-marian")
    shutil.copytree(MARIAN, folder / "weights" / "demo-marian")
    settings["translate"] |= {"min_confidence": least}
    settings["generate"] |= ROUNDS if rounds else {"images": 2}
    settings["score"] |= {"keep_best": None}
    return RunConfig.model_validate(settings)


@pytest.fixture(scope="module")
def everything(folder: Path) -> RunConfig:
    """A finished run that draws all prompts."""
    config = configured(folder, "everything", None)
    finish(config)
    return config


@pytest.fixture(scope="module")
def least(everything: RunConfig) -> float:
    """Only the translation of one prompt is less certain."""
    found: dict[str, float] = {}
    for manifest in read_shard_manifests(Storage(everything.output)):
        rows = pq.read_table(manifest.stages["translate"].uri).to_pylist()
        found |= {row["prompt_id"]: row["confidence"] for row in rows if row["lang"] != "ru"}
    unsure = found.pop("unsure")
    assert unsure < min(found.values())
    return (unsure + min(found.values())) / 2


@pytest.fixture(scope="module")
def certain(folder: Path, least: float) -> RunConfig:
    """A finished run that draws only prompts whose translation is certain."""
    config = configured(folder, "certain", least)
    with pytest.MonkeyPatch.context() as patch, counting_images(patch) as drawn:
        finish(config)
    assert {name.rpartition("-")[0] for name in drawn} == {"black", "sure", "other"}
    return config


def test_an_uncertain_prompt_is_one_reject_and_the_others_are_as_ever(
    certain: RunConfig, everything: RunConfig, least: float
) -> None:
    storage = Storage(certain.output)
    rejects = read_rejects(certain.output)
    (row,) = rejects[rejects["reason"] == "uncertain_translation"].to_dict("records")
    assert (row["prompt_id"], row["stage"]) == ("unsure", "translate") and pd.isna(row["image_id"])
    assert row["text_ru"] and f"below min_confidence {least:.3f}" in row["detail"]
    images, every = read_images(certain.output), read_images(everything.output)
    assert list(images.index) == [name for name in every.index if "unsure" not in name]
    assert list(images["sha256"]) == list(every.loc[images.index, "sha256"])
    assert audit_output(storage).faults == []
    assert replay(storage, images.index[-1]).identical
    before = snapshot(Path(certain.output, "stages"))
    with pytest.MonkeyPatch.context() as patch, counting_images(patch) as drawn:
        finish(certain)
    assert drawn == [] and snapshot(Path(certain.output, "stages")) == before


@pytest.mark.parametrize("rounds", [False, True])
def test_another_limit_draws_only_what_it_lets_in(
    rounds: bool, folder: Path, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, (first, then) in enumerate([(None, least), (least, None)]):
        names = [f"{number} {rounds} {one}" for one in ("changed", "fresh")]
        changed = configured(folder, names[0], first, rounds)
        finish(changed)
        changed, fresh = (configured(folder, name, then, rounds) for name in names)
        outlook = look_ahead(changed)
        with counting_images(monkeypatch) as drawn:
            finish(changed)
        assert {name.rpartition("-")[0] for name in drawn} == ({"unsure"} if first else set())
        assert outlook.images <= len(drawn) <= outlook.most_images
        finish(fresh)
        assert published(changed) == published(fresh)
        assert audit_output(Storage(changed.output)).faults == []


def test_a_killed_run_goes_on(
    certain: RunConfig, folder: Path, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(folder, "killed", least, rounds=False)
    runs, finished = 0, False
    while not finished:
        runs += 1
        with suppress(Killed), killed_after(2, monkeypatch):
            finish(config)
            finished = True
    assert runs > 3 and published(config) == published(certain)
