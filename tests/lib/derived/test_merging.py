"""Merged files: what does not change stays, nothing half remains, and every check covers them."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rudalle_lib.checks.audit import audit_output, reopen_faulty
from rudalle_lib.checks.replay import replay
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.archives import unpack_tar
from rudalle_lib.dataset.frames import read_images
from rudalle_lib.errors import ConfigError
from rudalle_lib.pipeline.recorded_run import current_report
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finish, finished_below, in_form
from tests.support.tiny_run import snapshot

FOLDER = "data/merged"
FORMS = ("webdataset", "parquet")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run of three shards with eight images."""
    return finished_below(tmp_path_factory.mktemp("merging"))


def merging(config: RunConfig, form: str, rows: int | None, folder: Path) -> RunConfig:
    return in_form(config, folder / "out", format=form, rows_per_file=rows)


def merged_ids(storage: Storage) -> list[list[str]]:
    """The ids of the images in each merged file."""
    found = []
    for path in storage.list(FOLDER):
        content = storage.read_bytes(path)
        if path.endswith(".tar"):
            found.append(list(unpack_tar(content, path)))
        else:
            table = pq.read_table(io.BytesIO(content), columns=["image_id"])
            found.append(table.column("image_id").to_pylist())
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [3, 8, 100])
def test_files_have_the_rows_that_were_asked_for(
    files: RunConfig, tmp_path: Path, form: str, rows: int
) -> None:
    config = merging(files, form, rows, tmp_path)
    finish(config)
    storage = Storage(config.output)
    found = merged_ids(storage)
    assert [len(ids) for ids in found] == {3: [3, 3, 2], 8: [8], 100: [8]}[rows]
    assert [name for ids in found for name in ids] == list(read_images(config.output).index)
    assert audit_output(storage).faults == []
    assert replay(storage, found[0][0]).identical
    card = storage.read_bytes("README.md").decode()
    suffix = "tar" if form == "webdataset" else "parquet"
    assert f"path: {FOLDER}/*.{suffix}\n" in card


@pytest.mark.parametrize("form", FORMS)
def test_growing_keeps_full_files_and_a_second_run_writes_none(
    files: RunConfig, tmp_path: Path, form: str
) -> None:
    config = merging(files, form, 3, tmp_path)
    finish(config)
    folder, storage = tmp_path / "out" / FOLDER, Storage(config.output)
    before = snapshot(folder)
    finish(config.model_copy(update={"name": "again"}))
    assert snapshot(folder) == before
    run = finish(config)
    assert current_report(storage, config, 3) == run
    (tmp_path / "more.csv").write_text("prompt,images\nдва круга,4\nтри круга,4\n")
    prompts = config.prompts.model_copy(update={"uri": str(tmp_path / "more.csv")})
    finish(config.model_copy(update={"prompts": prompts}))
    after, names = snapshot(folder), sorted(before)
    assert {name: after.get(name) for name in names[:2]} == {n: before[n] for n in names[:2]}
    assert names[2] not in after and len(after) == 4
    assert [len(ids) for ids in merged_ids(storage)] == [3, 3, 3, 3]
    assert audit_output(storage).faults == []


@pytest.mark.parametrize("form", FORMS)
def test_the_size_of_shards_changes_no_byte(files: RunConfig, tmp_path: Path, form: str) -> None:
    """Texts are scored one by one: scores of other batches differ in the last bit."""
    found = []
    for size in (2, 5):
        prompts = files.prompts.model_copy(update={"shard_size": size})
        score = files.score.model_copy(update={"batch_size": 1})
        publish = files.publish.model_copy(update={"format": form, "rows_per_file": 3})
        changes = {"prompts": prompts, "score": score, "publish": publish}
        storage = Storage(str(tmp_path / str(size)))
        finish(files.model_copy(update={**changes, "output": storage.url()}))
        found.append({path: storage.read_bytes(path) for path in storage.list(FOLDER)})
    assert found[0] == found[1] and len(found[0]) == 3


def test_what_is_left_of_a_killed_report_is_named_and_deleted(
    files: RunConfig, tmp_path: Path
) -> None:
    config = merging(files, "parquet", 3, tmp_path)
    finish(config)
    storage = Storage(config.output)
    left = f"{FOLDER}/00000.{'0' * 16}.parquet"
    storage.write_bytes(left, b"of a report that was killed")
    (fault,) = audit_output(storage).faults
    assert (fault.kind, fault.path) == ("orphan", left)
    finish(config.model_copy(update={"name": "again"}))
    assert left not in storage.list(FOLDER) and audit_output(storage).faults == []


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_a_damaged_file_is_found_and_made_again(
    files: RunConfig, tmp_path: Path, damage: str
) -> None:
    config = merging(files, "webdataset", 3, tmp_path)
    finish(config)
    storage = Storage(config.output)
    path = storage.list(FOLDER)[1]
    before = storage.read_bytes(path)
    if damage == "gone":
        storage.delete(path)
    else:
        changed = before[:-9] if damage == "cut" else bytes([before[0] ^ 1]) + before[1:]
        storage.write_bytes(path, changed)
    audit = audit_output(storage)
    assert [(fault.path, fault.shard) for fault in audit.faults] == [(path, None)]
    assert reopen_faulty(storage, audit, 60) == []
    finish(config)
    assert storage.read_bytes(path) == before and audit_output(storage).faults == []


def test_turning_it_off_deletes_the_files_and_publishes_nothing_again(
    files: RunConfig, tmp_path: Path
) -> None:
    finish(merging(files, "parquet", 3, tmp_path))
    published = snapshot(tmp_path / "out/data/parquet")
    off = merging(files, "parquet", None, tmp_path)
    finish(off)
    assert Storage(off.output).list(FOLDER) == []
    assert snapshot(tmp_path / "out/data/parquet") == published
    assert "path: data/parquet/*.parquet" in (tmp_path / "out/README.md").read_text()


def test_image_files_are_not_merged() -> None:
    with pytest.raises(ConfigError, match="rows_per_file needs format webdataset or parquet"):
        RunConfig.parse("publish: {format: files, rows_per_file: 10}")
    digest = RunConfig.parse("name: x").publish.identity()
    assert (
        "rows_per_file" not in digest and "rows_per_file" not in RunConfig().digested()["publish"]
    )
