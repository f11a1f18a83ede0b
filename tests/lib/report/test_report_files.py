"""A report names its files, replaces its own, and deletes those that it no longer has."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.manifests import require_run_manifest, write_run_manifest
from rudalle_lib.errors import StorageError
from rudalle_lib.report.report_files import ReportFiles
from rudalle_lib.schema.records import DataFile
from rudalle_lib.storage.guards import guarding
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finish

FILES = {
    *(
        "README.md",
        "croissant.json",
        "contact_sheet.png",
        "gallery/data/00000.js",
        "gallery/index.html",
    ),
    "data/images/metadata.parquet",
}


@pytest.fixture
def config(finished: RunConfig, tmp_path: Path) -> RunConfig:
    """A finished run, which the test may change."""
    shutil.copytree(finished.output, tmp_path / "out")
    return finished.model_copy(update={"output": str(tmp_path / "out")})


def test_the_run_manifest_names_every_file_of_the_report(finished: RunConfig) -> None:
    storage = Storage(finished.output)
    files = require_run_manifest(storage).files
    assert set(files) == FILES
    for path, file in files.items():
        assert file == DataFile.of(path, storage.read_bytes(path))


def test_what_the_next_report_does_not_write_is_deleted(config: RunConfig) -> None:
    storage = Storage(config.output)
    storage.write_bytes("gallery/mine.html", b"mine")
    storage.write_bytes("gallery/data/00007.js", b"mine")
    publish = config.publish.model_copy(update={"gallery": False, "metrics": True})
    finish(config.model_copy(update={"publish": publish}))
    assert storage.list("gallery") == ["gallery/data/00007.js", "gallery/mine.html"]
    assert "metrics.prom" in require_run_manifest(storage).files


def test_a_file_of_somebody_else_is_kept_by_every_later_report(config: RunConfig) -> None:
    storage = Storage(config.output)
    storage.write_bytes("metrics.prom", b"mine")
    with pytest.raises(StorageError, match=r"metrics\.prom was not written by a run"):
        ReportFiles(storage).write("metrics.prom", b"rudalle_flows_images 1")
    assert storage.read_bytes("metrics.prom") == b"mine"


def test_a_run_manifest_of_somebody_else_is_kept(storage: Storage) -> None:
    storage.write_bytes("run.json", b'{"scripts": {}}')
    with pytest.raises(StorageError, match=r"run\.json was not written by a run"):
        ReportFiles(storage)


def test_a_report_of_0_1_named_no_files(config: RunConfig) -> None:
    storage = Storage(config.output)
    run = require_run_manifest(storage)
    storage.write_bytes("contact_sheet.png", b"the sheet of 0.1 has no mark")
    write_run_manifest(storage, replace(run, files={}))
    finish(config)
    assert require_run_manifest(storage).files.keys() == FILES


@pytest.mark.parametrize("output_url", ["s3"], indirect=True)
def test_a_late_request_does_not_replace_the_report_of_another_run(storage: Storage) -> None:
    """The machine sleeps between the check of the lease and the request after it."""
    path = f"{storage._root}/README.md"
    taken_over = guarding(storage.url(), lambda: storage._file_system.pipe_file(path, b"another"))
    files = ReportFiles(storage)
    with taken_over, pytest.raises(StorageError, match="written by another run"):
        files.write("README.md", b"late")
    storage.delete("README.md")
    late = files.writing("README.md")
    with (
        guarding(storage.url(), lambda: storage._file_system.pipe_file(path, b"another")),
        pytest.raises(StorageError, match="written by another run"),
        late as stream,
    ):
        stream.write(b"late")
    assert storage.read_bytes("README.md") == b"another" and not files.written
