"""A run writes only to an empty folder or to its own, and replaces only what a run has written."""

from __future__ import annotations

from pathlib import Path

import pytest

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.lease import hold
from rudalle_lib.dataset.ownership import MARKS, check_ours, check_replaceable
from rudalle_lib.errors import RudalleError, StorageError
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finish, tiny_config


def test_an_empty_or_missing_folder_may_be_used(storage: Storage) -> None:
    check_ours(storage)


def test_empty_folders_of_ours_do_not_count(tmp_path: Path, s3_url: str) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    check_ours(Storage(str(tmp_path)))
    on_s3 = Storage(s3_url)
    on_s3._file_system.pipe_file(f"{on_s3._root}/shards/", b"")
    check_ours(on_s3)


@pytest.mark.parametrize(
    "name", ["plan/00000.parquet", "shards/00000.json", "gallery/data/00000.js"]
)
def test_a_folder_with_the_name_of_a_file_of_ours_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(StorageError, match="is not empty and is not the output of a run"):
        check_ours(Storage(str(tmp_path)))


@pytest.mark.parametrize(
    "name", [".DS_Store", ".git/HEAD", "lost+found/x", "@eaDir/x", "Thumbs.db"]
)
def test_what_systems_leave_in_every_folder_does_not_count(storage: Storage, name: str) -> None:
    storage.write_bytes(name, b"")
    check_ours(storage)


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "run.json",
        "contact_sheet.png",
        "data/images/00000/holiday.png",
        "data/webdataset/00000.tar",
        "gallery/data/00000.js",
        "plan/notes.txt",
        "plan/00000.parquet.bak",
        "shards/00000.json",
        "lease/00001.json",
        "stages/decode/00000.parquet",
        "src/main.c",
    ],
)
def test_a_folder_of_somebody_else_is_refused_and_left_alone(storage: Storage, name: str) -> None:
    storage.write_bytes(name, b"mine")
    with pytest.raises(StorageError, match="is not empty and is not the output of a run") as error:
        check_ours(storage)
    assert name.partition("/")[0] in str(error.value)
    assert storage.list() == [name] and storage.read_bytes(name) == b"mine"


def test_the_error_names_few_entries(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}").write_text("")
    with pytest.raises(StorageError, match=r"it holds 0, 1, 2 \.\.\.\. Choose"):
        check_ours(Storage(str(tmp_path)))


def test_an_output_with_a_plan_or_a_lease_is_ours(storage: Storage, finished: RunConfig) -> None:
    with hold(storage, 60):
        check_ours(storage)
    check_ours(storage)
    check_ours(Storage(finished.output))


@pytest.mark.parametrize(
    "path",
    ["README.md", "run.json", "contact_sheet.png", "gallery/index.html", "gallery/data/00000.js"],
)
def test_a_file_of_somebody_else_in_an_unfinished_output_is_never_replaced(
    tmp_path: Path, path: str
) -> None:
    config = tiny_config(tmp_path, str(tmp_path / "out"))
    storage = Storage(config.output)
    storage.write_bytes(path, b"mine")
    with pytest.raises(RudalleError, match="was not written by a run, and a run would replace it"):
        finish(config)
    assert storage.read_bytes(path) == b"mine"
    storage.delete(path)
    finish(config)
    assert storage.exists(path)


def test_what_an_interrupted_report_left_is_replaced(config: RunConfig) -> None:
    storage = Storage(config.output)
    left = [path for path in (*MARKS, "gallery/data/00000.js") if storage.exists(path)]
    assert len(left) == 7
    for path in left:
        check_replaceable(storage, path)
    storage.delete("run.json")
    check_ours(storage)
    finish(config)


@pytest.mark.parametrize("folder", ["data", "data/images", "stages", "gallery", "plan"])
def test_a_folder_that_is_a_link_is_refused_before_anything_is_drawn(
    config: RunConfig, tmp_path: Path, folder: str
) -> None:
    """As where somebody has moved it to another disk."""
    Path(config.output, folder).rename(tmp_path / "elsewhere")
    Path(config.output, folder).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match=f"{folder} is a symbolic link"):
        check_ours(Storage(config.output))


@pytest.mark.parametrize("path", MARKS)
def test_a_folder_instead_of_a_file_of_the_report_is_found_before_anything_is_drawn(
    config: RunConfig, path: str
) -> None:
    target = Path(config.output, path)
    target.unlink(missing_ok=True)
    target.mkdir()
    with pytest.raises(StorageError, match="is (a|not).*(folder|run).*"):
        check_ours(Storage(config.output))


@pytest.mark.parametrize("content", [b"", bytes(4096)])
def test_an_empty_file_as_after_a_power_cut_is_replaced(tmp_path: Path, content: bytes) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("README.md", content)
    check_replaceable(storage, "README.md")
