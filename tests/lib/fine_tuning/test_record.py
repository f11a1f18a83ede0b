"""What a fine-tuning depends on, and its record on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.config.run import RunConfig
from rudalle_lib.errors import DamagedError
from rudalle_lib.fine_tuning.record import (
    RECORD,
    FineTuneRecord,
    SourceCount,
    open_data,
    read_record,
    settings_digest,
    training_version,
    write_record,
)
from rudalle_lib.storage.storage import Storage
from rudalle_lib.training.data.manifest import EncodedData, EncodedShard, EncodedSource

Make = Callable[..., FineTuneConfig]

WEIGHTS = {"demo-dalle": "a" * 32, "demo-vqgan": "b" * 32}
SHARD = EncodedShard("stages/encode/00000.x.parquet", 8, {}, None)
DATA = EncodedData("decoder", 32, 32, 40, 16, (EncodedSource("images", 1, (SHARD,)),))


def record_of(config: FineTuneConfig) -> FineTuneRecord:
    return FineTuneRecord(
        name=config.name, trains=config.trains, base=config.base_model,
        settings=settings_digest(config, WEIGHTS),
        config={**config.public_dict(), "base": config.base_model}, base_weights=WEIGHTS,
        sources=(SourceCount("images", 8, 1),), images=8, held_out=2, rejected={}, steps=2,
        weights_step=2, seconds=1.5, stopped_early=False, first={"loss": 3.0}, last={"loss": 2.0},
        held_out_losses={"2": 2.5}, folder="out/weights/mine", files={"config.json": "0" * 64},
        started="2026-01-01T00:00:00+00:00", finished="2026-01-01T00:01:00+00:00",
        versions={"torch": "2"},
    )  # fmt: skip


def test_a_record_is_read_as_it_was_written(make: Make, tmp_path: Path) -> None:
    storage, record = Storage(str(tmp_path)), record_of(make(tmp_path))
    assert read_record(storage) is None
    write_record(storage, record)
    assert read_record(storage) == record
    content = storage.read_bytes(RECORD).replace(b'"images": 8', b'"images": 9')
    storage.write_bytes(RECORD, content)
    with pytest.raises(DamagedError, match="fine_tune.json is no record .*delete it"):
        read_record(storage)


def test_its_usage_names_the_registered_base(make: Make, tmp_path: Path) -> None:
    usage = record_of(make(tmp_path)).usage().splitlines()
    assert usage == [
        "weights:",
        "  models:",
        "    mine: {base: demo-dalle, folder: out/weights/mine}",
        "generate: {model: mine}",
    ]
    models = {"first": {"base": "malevich-v3", "folder": "x"}}
    again = make(tmp_path, base="first", weights={"models": models})
    assert "base: malevich-v3, folder" in record_of(again).usage()


@pytest.mark.parametrize(
    ("changes", "vqgan"),
    [
        ({"vqgan": "vqgan-f8"}, None),
        (
            {
                "vqgan": "codes",
                "weights": {"models": {"codes": {"base": "vqgan-f8", "folder": "x"}}},
            },
            "x",
        ),
        ({"name": "2026"}, None),
        ({"name": "null"}, None),
    ],
)
def test_its_usage_is_a_configuration_with_the_vqgan_of_the_decoder(
    make: Make, tmp_path: Path, changes: dict[str, object], vqgan: str | None
) -> None:
    config = make(tmp_path, **changes)
    record = replace(record_of(config), folder="out, or {so}: #1/mine")
    run = RunConfig.model_validate({"prompts": {"uri": "x"}, **yaml.safe_load(record.usage())})
    models = {name: own.folder for name, own in run.weights.models.items()}
    assert models.pop(config.name) == record.folder
    assert models == ({} if vqgan is None else {config.vqgan: vqgan})
    assert (run.generate.model, run.decode.model) == (config.name, config.vqgan)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"training": {"steps": 3, "batch_size": 2, "dtype": "float32"}}, False),
        ({"seed": 1}, False),
        ({"evaluation": {"every": 2}}, False),
        ({"runtime": {"devices": "cpu", "processes": 2}}, True),
        ({"training": {"steps": 2, "batch_size": 2, "dtype": "float32", "images_at_once": 1}},
         True),
    ],
)  # fmt: skip
def test_a_version_changes_with_what_is_learnt(
    make: Make, tmp_path: Path, changes: dict[str, object], same: bool
) -> None:
    before, after = make(tmp_path), make(tmp_path, **changes)
    if "evaluation" in changes:
        before = make(tmp_path, evaluation={"every": 1})
    versions = [training_version(config, WEIGHTS, DATA) for config in (before, after)]
    digests = [settings_digest(config, WEIGHTS) for config in (before, after)]
    assert (versions[0] == versions[1]) == same == (digests[0] == digests[1])


def test_a_version_changes_with_data_and_weights_and_not_with_the_name(
    make: Make, tmp_path: Path
) -> None:
    config = make(tmp_path)
    version = training_version(config, WEIGHTS, DATA)
    more = replace(DATA, sources=(EncodedSource("images", 2, (SHARD,)),))
    assert training_version(config, WEIGHTS, more) != version
    assert training_version(config, {**WEIGHTS, "demo-dalle": "c" * 32}, DATA) != version
    renamed = make(tmp_path, name="other")
    assert training_version(renamed, WEIGHTS, DATA) == version
    assert settings_digest(renamed, WEIGHTS) != settings_digest(config, WEIGHTS)


def test_data_that_is_not_encoded_is_an_error(make: Make, tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="has no encoded data"):
        open_data(make(tmp_path))
