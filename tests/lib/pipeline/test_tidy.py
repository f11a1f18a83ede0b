"""Stage artifacts can be dropped: the dataset stays, and what is missing is made if needed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.cli.outlook import look_ahead
from rudalle_lib.checks.audit import audit_output
from rudalle_lib.checks.replay import replay
from rudalle_lib.checks.rescore import rescore_sample
from rudalle_lib.checks.retry import reopen_rejected
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset import layout
from rudalle_lib.dataset.frames import read_images
from rudalle_lib.dataset.lease import hold
from rudalle_lib.errors import ConfigError, LeaseError, StorageError
from rudalle_lib.pipeline.artifacts import stage_path
from rudalle_lib.pipeline.tidy import LEVELS, tidy
from rudalle_lib.prompts.plan import read_plan
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finish
from tests.support.tiny_run import contents, snapshot

DATASET = ("data", "plan", "rejects", "shards", "gallery", "run.json", "README.md")
KEPT = {
    "decoded": {"translate", "generate", "decode", "score"},
    "tokens": {"translate", "generate", "score"},
    "nothing": set(),
}
CHANGES = [
    pytest.param("decoded", {"publish": {"format": "webdataset"}}, id="decoded-format"),
    pytest.param("tokens", {"decode": {"dtype": "bfloat16"}}, id="tokens-decode"),
    pytest.param("tokens", {"cutout": {"transparent": True}}, id="tokens-cutout"),
    pytest.param("nothing", {"publish": {"format": "parquet"}}, id="nothing-format"),
]
"""What is kept, and what is changed then."""

PLANNED = 19
"""Images that the prompts of the run ask for; those of the untranslated one are never drawn."""


def stages_in(config: RunConfig) -> set[str]:
    return {path.split("/")[1] for path in Storage(config.output).list("stages")}


def changed(config: RunConfig, change: dict[str, dict[str, object]]) -> RunConfig:
    sections = {
        name: getattr(config, name).model_copy(update=settings) for name, settings in change.items()
    }
    return config.model_copy(update=sections)


@pytest.mark.parametrize("keep", LEVELS)
def test_the_dataset_stays_whole(config: RunConfig, keep: str) -> None:
    storage, dataset = Storage(config.output), contents(Path(config.output), *DATASET)
    before = sum(map(storage.size, storage.list("stages")))
    tidied = tidy(storage, keep, 60)
    assert stages_in(config) == KEPT[keep]
    assert contents(Path(config.output), *DATASET) == dataset
    assert tidied.before == before and tidied.left_alone == () and tidied.shards == 3
    assert tidied.after == sum(map(storage.size, storage.list("stages"))) < before

    audit = audit_output(storage)
    rescore_sample(storage, audit, 4)
    assert audit.faults == [] and audit.checked["pairs"] == 4
    assert replay(storage, str(read_images(config.output).index[0])).identical
    outlook = look_ahead(config)
    assert outlook.difference.todo == [] and outlook.images == 0


@pytest.mark.parametrize(("keep", "change"), CHANGES)
def test_what_a_change_costs_is_told_before(
    config: RunConfig, keep: str, change: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    whole = config.model_copy(update={"output": str(tmp_path / "whole")})
    shutil.copytree(config.output, whole.output)
    tidy(Storage(config.output), keep, 60)
    outlook = look_ahead(changed(config, change))
    told = {
        (stage, shard.index)
        for shard, stages in outlook.difference.changed
        for stage in stages
        if stage != "publish"
    }
    before = snapshot(Path(config.output, "stages"))
    finish(changed(config, change))
    after = snapshot(Path(config.output, "stages"))
    made = {path for path in after if before.get(path) != after[path]}
    names = {path: layout.parse(f"stages/{path}") for path in made}
    assert {(path.split("/")[0], name.number) for path, name in names.items() if name} == told
    assert outlook.images == (PLANNED if keep == "nothing" else 0)

    finish(changed(whole, change))
    parts = ("data", "rejects")
    assert contents(Path(config.output), *parts) == contents(Path(whole.output), *parts)


def test_files_of_others_and_of_unfinished_work_stay(config: RunConfig) -> None:
    storage, (first, second, third) = Storage(config.output), read_plan(Storage(config.output))
    begun = stage_path("decode", second, "f" * 32)
    others = ["stages/decode/notes.txt", "stages/mine/00000.parquet", begun]
    for path in others:
        storage.write_bytes(path, b"mine")
    storage.delete(layout.shard_manifest_path(third.index))
    unfinished = [path for path in storage.list("stages") if f"/{third.index:05d}." in path]
    tidied = tidy(storage, "nothing", 60)
    assert tidied.left_alone == (second.index, third.index) and tidied.shards == 1
    left = set(storage.list("stages"))
    assert left >= {*others, *unfinished}
    assert not any(f"/{first.index:05d}." in path for path in left - {*others})
    assert sum(f"/{second.index:05d}." in path for path in left) > 1


def test_beside_a_run_nothing_is_deleted(config: RunConfig) -> None:
    storage, before = Storage(config.output), snapshot(Path(config.output, "stages"))
    with hold(storage, 60):
        told = tidy(storage, "tokens", 60, dry_run=True)
        with pytest.raises(LeaseError, match="Another run writes"):
            tidy(storage, "tokens", 60)
    assert snapshot(Path(config.output, "stages")) == before
    assert told == tidy(storage, "tokens", 60) and told.after < told.before


def test_a_command_that_was_killed_can_be_repeated(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, deleted = Storage(config.output), list[str]()
    delete = storage.delete

    def delete_two(path: str) -> None:
        if path.startswith("stages/"):
            deleted.append(path)
            if len(deleted) > 2:
                raise KeyboardInterrupt
        delete(path)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", delete_two)
        with pytest.raises(KeyboardInterrupt):
            tidy(storage, "tokens", 60)
    assert audit_output(storage).faults == []
    assert tidy(storage, "tokens", 60).stages["decode"].dropped > 0
    assert stages_in(config) == KEPT["tokens"]


@pytest.mark.parametrize(("keep", "redrawn"), [("tokens", 0), ("nothing", 4)])
def test_rejected_prompts_can_still_be_retried(config: RunConfig, keep: str, redrawn: int) -> None:
    dataset = contents(Path(config.output), "data", "rejects")
    storage = Storage(config.output)
    tidy(storage, keep, 60)
    reopened = reopen_rejected(storage, "translation_failed", 60)
    assert (reopened.prompts, reopened.redrawn) == (1, redrawn)
    finish(config)
    assert contents(Path(config.output), "data", "rejects") == dataset


def test_on_s3(config: RunConfig, s3_url: str) -> None:
    storage, local = Storage(s3_url), Storage(config.output)
    for path in local.list():
        storage.write_bytes(path, local.read_bytes(path))
    assert tidy(storage, "tokens", 60) == tidy(local, "tokens", 60)
    assert storage.list("stages") == local.list("stages")


def test_what_cannot_be_tidied_is_one_sentence(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Cannot keep 'token' \(did you mean tokens\?\): exp"):
        tidy(Storage(config.output), "token", 60)
    with pytest.raises(StorageError, match="There is no run in"):
        tidy(Storage(str(tmp_path / "empty")), "tokens", 60)
