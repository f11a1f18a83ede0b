"""Whole runs in every form of the dataset: the images are the same, and all tools can read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rudalle_lib.checks.audit import audit_output, reopen_faulty
from rudalle_lib.checks.replay import replay
from rudalle_lib.checks.rescore import rescore_sample
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.frames import read_images
from rudalle_lib.dataset.reader import PublishedImages
from rudalle_lib.storage.storage import Storage
from tests.support.damage import archive_of
from tests.support.finished_run import finish, finished_below
from tests.support.gallery_pages import gallery_rows
from tests.support.tiny_run import snapshot

FORMS = {"webdataset": "data/webdataset/*.tar", "parquet": "data/parquet/*.parquet"}
"""The files of each form, as the card names them."""


def in_form(config: RunConfig, form: str, output: str) -> RunConfig:
    publish = config.publish.model_copy(update={"format": form})
    return config.model_copy(update={"publish": publish, "output": output})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run with one file per image."""
    return finished_below(tmp_path_factory.mktemp("forms"))


@pytest.fixture(scope="module", params=FORMS)
def config(request: pytest.FixtureRequest, files: RunConfig) -> RunConfig:
    """The same run in another form."""
    config = in_form(files, request.param, f"{files.output}-{request.param}")
    finish(config)
    return config


def test_images_and_metadata_are_the_same_as_in_files(config: RunConfig, files: RunConfig) -> None:
    found, expected = read_images(config.output), read_images(files.output)
    same = [name for name in found.columns if name != "path"]
    assert found[same].equals(expected[same])
    reader, storage = PublishedImages(Storage(config.output)), Storage(files.output)
    for name, row in found.iterrows():
        assert reader.read(row.path, str(name)) == storage.read_bytes(expected.path[str(name)])


def test_the_dataset_is_intact_and_its_images_can_be_replayed(config: RunConfig) -> None:
    storage = Storage(config.output)
    audit = audit_output(storage)
    rescore_sample(storage, audit, 64)
    assert audit.faults == [] and audit.checked["images"] == audit.checked["pairs"] == 8
    for name in read_images(config.output).index[::3]:
        assert replay(storage, str(name)).identical


def test_gallery_contact_sheet_and_card_show_the_images(
    config: RunConfig, files: RunConfig
) -> None:
    output, other = Path(config.output), Path(files.output)
    sheet = (output / "contact_sheet.png").read_bytes()
    assert sheet == (other / "contact_sheet.png").read_bytes()
    rows = gallery_rows(Storage(config.output))
    shown = [output / "gallery" / row["thumb"] for row in rows if "thumb" in row]
    assert len(shown) >= 8 and all(path.is_file() for path in shown)
    card = (output / "README.md").read_text()
    assert f"path: {FORMS[config.publish.format]}\n" in card


@pytest.mark.parametrize("damage", ["gone", "flipped", "cut"])
def test_a_damaged_archive_is_found_named_and_rebuilt(
    config: RunConfig, tmp_path: Path, damage: str
) -> None:
    config = config.model_copy(update={"output": str(tmp_path / "out")})
    finish(config)
    storage = Storage(config.output)
    path = archive_of(storage)
    content = storage.read_bytes(path)
    if damage == "gone":
        storage.delete(path)
    else:
        middle = len(content) // 2
        flipped = bytes([content[middle] ^ 1]) if damage == "flipped" else b""
        storage.write_bytes(path, content[:middle] + flipped + content[middle + 1 :])
    audit = audit_output(storage)
    kind = "missing" if damage == "gone" else "damaged"
    assert [(fault.kind, fault.path) for fault in audit.faults] == [(kind, path)]
    assert reopen_faulty(storage, audit, 60) == [0]
    finish(config)
    assert storage.read_bytes(path) == content


def test_changing_the_form_never_regenerates_images(files: RunConfig, tmp_path: Path) -> None:
    for form in ("files", "webdataset", "parquet", "files"):
        config = in_form(files, form, str(tmp_path / "out"))
        before = snapshot(tmp_path / "out" / "stages") if form != "files" else {}
        finish(config)
        assert before in ({}, snapshot(tmp_path / "out" / "stages"))
        assert audit_output(Storage(config.output)).faults == []
