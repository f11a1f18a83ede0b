"""Local writes are atomic, and leftovers of killed writers are swept."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rudalle_lib.errors import StorageError
from rudalle_lib.storage.local_files import (
    TEMPORARY_FOLDER,
    create,
    replacing,
    sweep_temporary,
    whole_file,
)
from rudalle_lib.storage.storage import Storage

NAME = 32 * "a"


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / TEMPORARY_FOLDER
    folder.mkdir()
    return folder


def write(path: Path, age: float) -> Path:
    """A file that was last modified `age` seconds ago."""
    path.write_bytes(b"half a file")
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("a.bin", b"old")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(StorageError, match="the disk is full"):
        storage.write_bytes("a.bin", b"new")
    assert storage.read_bytes("a.bin") == b"old"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.bin"]


def test_a_file_is_created_once(tmp_path: Path) -> None:
    assert create(str(tmp_path), tmp_path / "a" / "b", b"1")
    assert not create(str(tmp_path), tmp_path / "a" / "b", b"2")
    assert (tmp_path / "a" / "b").read_bytes() == b"1"
    assert list((tmp_path / TEMPORARY_FOLDER).iterdir()) == []


def test_a_file_is_created_on_a_file_system_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert create(str(tmp_path), tmp_path / "a", b"1")
    assert not create(str(tmp_path), tmp_path / "a", b"2")
    assert (tmp_path / "a").read_bytes() == b"1"


def test_the_file_of_a_killed_writer_is_swept(tmp_path: Path) -> None:
    """A real process that is killed in the middle of a write."""
    code = (
        "import os, sys; from rudalle_lib.storage.storage import Storage\n"
        "with Storage(sys.argv[1]).writing('a.bin') as stream:\n"
        "    stream.write(b'half'); stream.flush(); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, cwd=Path(__file__).parents[3]).returncode == -9
    (abandoned,) = (tmp_path / TEMPORARY_FOLDER).iterdir()
    sweep_temporary(str(tmp_path), 60)
    assert abandoned.read_bytes() == b"half"
    write(abandoned, 61)
    sweep_temporary(str(tmp_path), 60)
    assert list((tmp_path / TEMPORARY_FOLDER).iterdir()) == []
    assert Storage(str(tmp_path)).list() == []


@pytest.mark.parametrize("name", [NAME, f"probe-{NAME}"])
def test_only_files_that_are_old_enough_are_swept(
    tmp_path: Path, temporary: Path, name: str
) -> None:
    for age, expected in ((-50, True), (0, True), (100, True), (140, False)):
        path = write(temporary / name, age)
        sweep_temporary(str(tmp_path), 120)
        assert path.exists() is expected, age


def test_age_is_judged_by_the_clock_of_the_file_system(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, recent = write(temporary / NAME, 200), write(temporary / (32 * "b"), 10)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    sweep_temporary(str(tmp_path), 120)
    assert not old.exists() and recent.exists()


@pytest.mark.parametrize("name", ["notes.txt", NAME[:-1], NAME + "a", NAME.upper(), f"x-{NAME}"])
def test_files_with_other_names_are_not_swept(tmp_path: Path, temporary: Path, name: str) -> None:
    path = write(temporary / name, 1e6)
    sweep_temporary(str(tmp_path), 0)
    assert path.exists()


def test_links_and_folders_are_not_swept(tmp_path: Path, temporary: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    target = write(elsewhere / NAME, 1e6)
    (temporary / NAME).symlink_to(target)
    (temporary / (32 * "b")).symlink_to(elsewhere)
    (temporary / (32 * "c")).mkdir()
    os.utime(temporary / (32 * "c"), (1, 1))
    sweep_temporary(str(tmp_path), 0)
    assert target.exists() and len(list(temporary.iterdir())) == 3


def test_a_temporary_folder_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = write(tmp_path / "elsewhere" / NAME, 1e6)
    (tmp_path / TEMPORARY_FOLDER).symlink_to(tmp_path / "elsewhere")
    sweep_temporary(str(tmp_path), 0)
    assert list((tmp_path / "elsewhere").iterdir()) == [path]


def test_a_file_that_vanishes_meanwhile_is_no_error(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for digit in "abc":
        write(temporary / (32 * digit), 1e6)
    unlink = os.unlink

    def unlink_twice(path: Path | os.DirEntry[str]) -> None:
        unlink(path)  # another process was faster
        unlink(path)

    monkeypatch.setattr("rudalle_lib.storage.local_files.os.unlink", unlink_twice)
    sweep_temporary(str(tmp_path), 0)
    assert list(temporary.iterdir()) == []


def test_sweeping_creates_no_folder(tmp_path: Path) -> None:
    sweep_temporary(str(tmp_path / "output"), 0)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_being_written_is_not_swept(tmp_path: Path) -> None:
    with replacing(str(tmp_path), tmp_path / "a") as stream:
        stream.write(b"1")
        sweep_temporary(str(tmp_path), 60)
    assert (tmp_path / "a").read_bytes() == b"1"


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with whole_file(path) as fresh:
        fresh.write_text("old")
        assert not path.exists()
    with pytest.raises(OSError, match="full"), whole_file(path) as fresh:
        fresh.write_text("half of the ne")
        raise OSError("the disk is full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
