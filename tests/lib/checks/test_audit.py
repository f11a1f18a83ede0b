"""An audit of a whole output: no false alarms, its command, and the repair of what it finds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from rudalle_lib.checks.audit import audit_output, reopen_faulty
from rudalle_lib.checks.rescore import rescore_sample
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset import layout
from rudalle_lib.dataset.lease import hold
from rudalle_lib.dataset.manifests import (
    read_run_manifest,
    read_shard_manifest,
    write_run_manifest,
    write_shard_manifest,
)
from rudalle_lib.errors import LeaseError, StorageError
from rudalle_lib.storage.storage import Storage
from tests.support.damage import artifact_of, cut, deleted, first_image, flip, image_of_shard_1
from tests.support.finished_run import finish
from tests.support.image_records import VERSION


def test_an_intact_output_has_no_faults_on_disk_and_on_s3(
    finished: RunConfig, output_url: str
) -> None:
    config = finished.model_copy(update={"output": output_url})
    finish(config)
    storage = Storage(output_url)
    audit = audit_output(storage)
    rescore_sample(storage, audit, 64)
    assert audit.faults == [] and audit.notes == []
    expected = {"shards": 3, "plan files": 3, "prompts": 5, "images": 8, "pairs": 8}
    assert expected.items() <= audit.checked.items()
    assert audit.as_recorded == {0, 1, 2}


def test_progress_is_reported_after_each_shard(finished: RunConfig) -> None:
    reported: list[tuple[int, int]] = []
    audit_output(Storage(finished.output), lambda done, total: reported.append((done, total)))
    assert reported == [(1, 3), (2, 3), (3, 3)]


def test_an_output_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"There is no run in .*expected a folder plan/"):
        audit_output(Storage(str(tmp_path)))


def test_a_run_with_changed_settings_that_has_not_finished_is_not_a_fault(
    config: RunConfig,
) -> None:
    storage = Storage(config.output)
    content = json.loads(storage.read_bytes("shards/00001.json"))
    assert content["stages"]["score"]["fingerprint"]
    manifest = read_shard_manifest(storage, 1)
    assert manifest is not None
    scored = replace(manifest.stages["score"], fingerprint="of other settings")
    write_shard_manifest(storage, replace(manifest, stages={**manifest.stages, "score": scored}))
    audit = audit_output(storage)
    rescore_sample(storage, audit, 64)
    assert audit.faults == [] and "other settings than run.json" in audit.notes[0]


def test_a_run_manifest_with_wrong_counts_is_found(config: RunConfig) -> None:
    storage = Storage(config.output)
    run = read_run_manifest(storage)
    assert run is not None
    totals = replace(run.totals, kept=run.totals.kept + 1)
    write_run_manifest(storage, replace(run, shards_planned=4, totals=totals))
    details = [(fault.kind, fault.detail) for fault in audit_output(storage).faults]
    assert details == [
        ("count", "it records 4 planned shards, found 3"),
        ("count", "its totals differ from the sums over all shards"),
    ]


def test_files_of_unfinished_shards_are_not_orphans(config: RunConfig) -> None:
    storage = Storage(config.output)
    storage.delete(layout.shard_manifest_path(0))
    for index in (0, 1):
        storage.write_bytes(f"data/images/{index:05d}/{VERSION}/new.png", b"x")
    found = [(item.path, item.shard) for item in audit_output(storage).faults
             if item.kind == "orphan"]  # fmt: skip
    assert found == [(f"data/images/00001/{VERSION}/new.png", 1)]


def test_files_of_others_are_a_note_and_are_never_deleted(config: RunConfig) -> None:
    storage = Storage(config.output)
    names = (
        "notes.txt",
        "plan/readme.md",
        "stages/decode/00001.parquet.bak",
        "data/images/00001/holiday.tiff",
        "data/metadata/00000.csv",
        "shards/1.json",
        "lease/lock",
        "gallery/mine.html",
    )
    for name in names:
        storage.write_bytes(name, b"mine")
    deleted(first_image)(storage)
    audit = audit_output(storage)
    assert [fault.kind for fault in audit.faults] == ["missing"]
    (note,) = [note for note in audit.notes if note.startswith("foreign")]
    assert all(name in note for name in sorted(names)[:3]), note
    reopen_faulty(storage, audit, 60)
    changed = config.publish.model_copy(update={"format": "webdataset"})
    finish(config.model_copy(update={"publish": changed}))
    assert {storage.read_bytes(name) for name in names} == {b"mine"}


def test_nothing_is_reopened_during_a_run(config: RunConfig) -> None:
    storage = Storage(config.output)
    deleted(first_image)(storage)
    audit = audit_output(storage)
    with hold(storage, 60), pytest.raises(LeaseError):
        reopen_faulty(storage, audit, 60)
    assert storage.exists(layout.shard_manifest_path(0))


def call(output: str, *arguments: str) -> tuple[int, str]:
    """Exit code and output of `rudalle-flows verify`."""
    result = CliRunner().invoke(app, ["verify", output, *arguments])
    return result.exit_code, " ".join(result.stdout.split())


def test_the_command_reports_faults_in_its_output_and_exit_code(config: RunConfig) -> None:
    code, output = call(config.output)
    assert code == 0 and "8 images" in output and "8 pairs" in output and "faults none" in output
    deleted(first_image)(Storage(config.output))
    code, output = call(config.output, "--sample", "0", "--repair")
    assert code == 1 and "1 missing" in output and "the file does not exist" in output
    assert "1 shard reopened; the next run" in output
    assert call(config.output, "--sample", "0")[0] == 1
    finish(config)
    assert call(config.output)[0] == 0


def test_damage_on_s3_is_repaired_and_nothing_else_is_touched(
    finished: RunConfig, s3_url: str
) -> None:
    config = finished.model_copy(update={"output": s3_url})
    finish(config)
    storage = Storage(s3_url)
    intact = {path: storage.read_bytes(path) for path in storage.list("data")}
    manifests = [layout.shard_manifest_path(index) for index in range(3)]
    before = [storage.read_bytes(path) for path in manifests]
    flip(first_image)(storage)
    deleted(image_of_shard_1)(storage)
    cut(artifact_of("generate", 1))(storage)
    storage.write_bytes(f"data/images/00000/{VERSION}/stray.png", b"x")
    storage.write_bytes("data/images/00000/notes.txt", b"mine")

    code, output = call(s3_url, "--sample", "0", "--repair")
    assert code == 1, output
    assert "2 damaged" in output and "1 missing" in output and "1 orphan" in output, output
    assert "2 shards reopened; the next run" in output
    assert [storage.exists(path) for path in manifests] == [False, False, True]

    finish(config)
    assert storage.read_bytes("data/images/00000/notes.txt") == b"mine"
    storage.delete("data/images/00000/notes.txt")
    assert {path: storage.read_bytes(path) for path in storage.list("data")} == intact
    assert storage.read_bytes(manifests[2]) == before[2]
    assert call(s3_url)[0] == 0
