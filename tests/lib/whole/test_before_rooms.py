"""A dataset made before some columns were renamed goes on working.

`tests/data/before_rooms` was made when `background` was called `ground`, and `image` `picture`.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from flows.cli import app
from rudalle_lib.checks.audit import audit_output
from rudalle_lib.checks.replay import replay
from rudalle_lib.checks.rescore import rescore_sample
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset import layout
from rudalle_lib.dataset.frames import read_images, read_rejects
from rudalle_lib.dataset.manifests import read_shard_manifests
from rudalle_lib.pipeline.stages import weight_digests
from rudalle_lib.prompts.plan import read_plan
from rudalle_lib.report.gallery_data import read_entries
from rudalle_lib.report.report import read_published
from rudalle_lib.schema.arrow import from_table, with_current_names
from rudalle_lib.schema.records import ImageRecord, PixelsRecord
from rudalle_lib.storage.storage import Storage
from tasks.without_prefect import process_shard
from tests.support.damage import artifact_of, forge, metadata_of

FIXTURE = Path(__file__).resolve().parents[2] / "data" / "before_rooms"
NOTE = "former column names in 2 shards: ground (now background), picture (now image)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the run: its configuration, prompts and dataset."""
    return Path(shutil.copytree(FIXTURE, tmp_path / "before_rooms"))


@pytest.fixture
def storage(folder: Path) -> Storage:
    return Storage(str(folder / "dataset"))


def version_of(path: str) -> str:
    """The version in the name of a shard's file."""
    name = layout.parse(path)
    assert name is not None, path
    return name.version


def test_the_fixture_has_the_former_names() -> None:
    storage = Storage(str(FIXTURE / "dataset"))
    for path, former, current in (
        ("data/metadata/00000.parquet", "ground", "background"),
        ("stages/decode/00000.parquet", "picture", "image"),
        ("stages/cutout/00000.parquet", "ground", "background"),
    ):
        names = storage.read_table(path).column_names
        assert former in names and current not in names


def test_the_audit_finds_no_faults_and_notes_the_former_names(storage: Storage) -> None:
    audit = audit_output(storage)
    rescore_sample(storage, audit, 64)
    assert audit.faults == []
    assert audit.checked["images"] == audit.checked["pairs"] == 4
    assert [note for note in audit.notes if note.startswith(NOTE)], audit.notes


def test_frames_have_the_current_names(storage: Storage) -> None:
    frame = read_images(storage.url())
    assert len(frame) == 4 and "ground" not in frame.columns
    assert set(frame["background"]) == {"colour"}
    assert list(frame.columns[-2:]) == ["background", "theme"]
    assert list(read_images(storage.url(), ["background"]).columns) == ["background"]
    assert set(read_rejects(storage.url())["reason"]) >= {"empty_prompt", "not_in_best_k"}


def test_frames_have_the_current_names_if_only_some_shards_are_older(storage: Storage) -> None:
    forge(storage, lambda table: with_current_names(table, ImageRecord), 1)
    assert "background" in storage.read_table(metadata_of(storage, 1)).column_names
    assert "ground" in storage.read_table(metadata_of(storage)).column_names
    frame = read_images(storage.url())
    assert len(frame) == 4 and "ground" not in frame.columns
    assert frame["background"].notna().all()
    assert read_images(storage.url(), ["background"])["background"].notna().all()
    audit = audit_output(storage)
    assert audit.faults == [] and any(note.startswith(NOTE) for note in audit.notes)


def test_the_report_and_the_gallery_show_its_images(storage: Storage) -> None:
    manifests = read_shard_manifests(storage)
    published = read_published(storage, manifests)
    assert {record.background for record in published.records} == {"colour"}
    assert "background" in published.columns.names and "ground" not in published.columns.names
    entries = list(read_entries(storage, manifests, lambda path: f"../{path}"))
    shown = [entry for entry in entries if entry.image_id and not entry.reason]
    assert len(shown) == 4
    assert all(entry.details["background"] == "colour" for entry in shown)
    assert not any("ground" in entry.details for entry in shown)
    rejected = [entry for entry in entries if entry.image_id and entry.reason]
    assert rejected and all((entry.thumbnail or "").startswith("data:image/") for entry in rejected)


def test_a_pass_through_column_with_a_former_name_keeps_it(storage: Storage) -> None:
    """As in a dataset made after the renaming."""

    def with_own_ground(table: pa.Table) -> pa.Table:
        table = with_current_names(table, ImageRecord).drop_columns(["theme"])
        return table.append_column("ground", pa.array(["mine"] * table.num_rows))

    for index in range(2):
        forge(storage, with_own_ground, index)
    frame = read_images(storage.url())
    assert set(frame["ground"]) == {"mine"} and set(frame["background"]) == {"colour"}
    only = read_images(storage.url(), ["ground"])
    assert list(only.columns) == ["ground"] and set(only["ground"]) == {"mine"}


# --- going on with it --------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, the lease aside."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "lease" not in path.parts
    }


def configuration(monkeypatch: pytest.MonkeyPatch, folder: Path, *changes: str) -> RunConfig:
    """The configuration of the run, in the folder that its paths are relative to."""
    monkeypatch.chdir(folder)
    return RunConfig.load("run.yaml", changes)


def test_the_next_run_publishes_again_and_draws_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version of the stage publish has risen since; those of the other stages have not."""
    before = files_of(folder)
    images = {Path(path).name for path in before if path.startswith("dataset/data/images/")}
    monkeypatch.chdir(folder)
    for _ in range(2):
        done = CliRunner().invoke(app, ["run", "run.yaml"])
        assert done.exit_code == 0, done.output
        assert "4 of 9 images published from 4 prompts" in done.output
    after = files_of(folder)
    stages = {path for path in before if path.startswith("dataset/stages/")}
    assert {path for path in after if path.startswith("dataset/stages/")} == stages
    assert all(after[path] == before[path] for path in stages)
    found = {Path(path).name for path in after if re.search(r"data/images/\d", path)}
    assert found == images
    again = CliRunner().invoke(app, ["run", "run.yaml"])
    assert again.exit_code == 0 and files_of(folder) == after


def test_an_unfinished_shard_is_published_from_its_stages(
    folder: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(folder)
    storage.delete("shards/00001.json")
    config = configuration(monkeypatch, folder)
    process_shard(config, weight_digests(config), read_plan(storage)[1])
    after = files_of(folder)
    changed = {path for path in before.keys() & after.keys() if before[path] != after[path]}
    assert changed == {"dataset/shards/00001.json"}
    # What is published now has a version in its name; the files that it replaces are deleted.
    kinds = ("data/images/", "data/metadata/", "rejects/")
    gone, new = (
        {path.removeprefix("dataset/") for path in paths}
        for paths in (before.keys() - after.keys(), after.keys() - before.keys())
    )
    assert all(path.startswith(kinds) and "00001" in path for path in gone | new)
    assert {version_of(path) for path in gone} == {layout.UNVERSIONED}
    assert len({version_of(path) for path in new}) == 1
    assert {Path(path).name for path in gone if path.endswith(".png")} == {
        Path(path).name for path in new if path.endswith(".png")
    }
    assert "background" in storage.read_table(metadata_of(storage, 1)).column_names
    # The run itself is not reported again here, so run.json has the earlier totals.
    assert {fault.path for fault in audit_output(storage).faults} <= {"run.json"}


def test_a_wider_choice_enlarges_only_the_images_that_it_adds(
    folder: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = from_table(storage.read_table("stages/upscale/00000.parquet"), PixelsRecord)
    config = configuration(monkeypatch, folder, "score.keep_best=2")
    unchanged = ("translate", "generate", "decode", "score")
    before = {name: storage.read_bytes(f"stages/{name}/00000.parquet") for name in unchanged}
    manifest = process_shard(config, weight_digests(config), read_plan(storage)[0])
    assert manifest.kept == manifest.images == 4
    new = from_table(storage.read_table(artifact_of("upscale")(storage)), PixelsRecord)
    assert (
        len(old) == 2 and len(new) == 4 and {row.image for row in old} < {row.image for row in new}
    )
    for name, content in before.items():
        assert storage.read_bytes(f"stages/{name}/00000.parquet") == content


def test_every_image_can_be_replayed(storage: Storage) -> None:
    for image_id in read_images(storage.url()).index:
        made = replay(storage, str(image_id))
        assert made.published
        # On another processor than the one that made it, the last bit of a pixel may differ.
        assert made.identical or made.differences[0] == "the image tokens are the same"
        if not made.identical:
            apart = re.search(r"(\d+) of 255", made.differences[1])
            assert apart is not None and int(apart[1]) <= 1
