"""Whole runs in every form of the dataset: the same pictures, and everything else works on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rudalle_lib.audit import audit_output, reopen_faulty
from rudalle_lib.config import RunConfig
from rudalle_lib.dataset import read_pictures
from rudalle_lib.published import PublishedPictures
from rudalle_lib.replaying import replay
from rudalle_lib.rescoring import rescore_sample
from rudalle_lib.storage import Storage
from tests.finished_run import finish, finished_below
from tests.tiny_run import snapshot

FORMS = {"webdataset": "data/webdataset/00000.tar", "parquet": "data/parquet/00000.parquet"}


def in_form(config: RunConfig, form: str, output: str) -> RunConfig:
    publish = config.publish.model_copy(update={"format": form})
    return config.model_copy(update={"publish": publish, "output": output})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run with a file a picture."""
    return finished_below(tmp_path_factory.mktemp("forms"))


@pytest.fixture(scope="module", params=FORMS)
def config(request: pytest.FixtureRequest, files: RunConfig) -> RunConfig:
    """The same run in another form."""
    config = in_form(files, request.param, f"{files.output}-{request.param}")
    finish(config)
    return config


def test_the_pictures_and_their_metadata_are_those_of_files(
    config: RunConfig, files: RunConfig
) -> None:
    found, expected = read_pictures(config.output), read_pictures(files.output)
    same = [name for name in found.columns if name != "path"]
    assert found[same].equals(expected[same])
    reader, storage = PublishedPictures(Storage(config.output)), Storage(files.output)
    for name, row in found.iterrows():
        assert reader.read(row.path, str(name)) == storage.read_bytes(expected.path[name])


def test_it_is_whole_and_every_picture_can_be_made_again(config: RunConfig) -> None:
    storage = Storage(config.output)
    audit = audit_output(storage)
    rescore_sample(storage, audit, 64)
    assert audit.faults == [] and audit.checked["pictures"] == audit.checked["pairs"] == 8
    for name in read_pictures(config.output).index[::3]:
        assert replay(storage, str(name)).identical


def test_page_sheet_and_card_show_it(config: RunConfig, files: RunConfig) -> None:
    output, other = Path(config.output), Path(files.output)
    sheet = (output / "contact_sheet.png").read_bytes()
    assert sheet == (other / "contact_sheet.png").read_bytes()
    assert (output / "gallery/data/00000.js").read_text().count("data:image/webp") >= 8
    card = (output / "README.md").read_text()
    pattern = Path(FORMS[config.publish.format])
    assert f"data_files: {pattern.parent}/*{pattern.suffix}" in card


@pytest.mark.parametrize("damage", ["gone", "flipped", "cut"])
def test_a_damaged_file_is_found_named_and_made_again(
    config: RunConfig, tmp_path: Path, damage: str
) -> None:
    config = config.model_copy(update={"output": str(tmp_path / "out")})
    finish(config)
    storage, path = Storage(config.output), FORMS[config.publish.format]
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


def test_another_form_draws_nothing_again(files: RunConfig, tmp_path: Path) -> None:
    for form in ("files", "webdataset", "parquet", "files"):
        config = in_form(files, form, str(tmp_path / "out"))
        before = snapshot(tmp_path / "out" / "stages") if form != "files" else {}
        finish(config)
        assert before in ({}, snapshot(tmp_path / "out" / "stages"))
        assert audit_output(Storage(config.output)).faults == []
