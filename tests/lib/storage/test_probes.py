"""What a run learns about a storage before it relies on it; nothing of it stays."""

from __future__ import annotations

import errno
import os
import shutil
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from rudalle_lib.errors import StorageError
from rudalle_lib.storage.local_files import FOLDER_PROBE, NO_HARD_LINKS
from rudalle_lib.storage.probes import check_writable, creates_exclusively, current_time
from rudalle_lib.storage.storage import Storage


def test_every_probe_leaves_no_file(storage: Storage, request: pytest.FixtureRequest) -> None:
    check_writable(storage)
    assert creates_exclusively(storage) is ("rclone" not in request.node.name)
    assert abs(current_time(storage) - time.time()) < 5
    assert storage.list() == [] and storage.entries() == []


def test_a_storage_that_replaces_files_is_recognized(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(storage: Storage, path: str, content: bytes) -> bool:
        storage.write_bytes(path, content)
        return True

    monkeypatch.setattr(Storage, "create", replace)
    assert not creates_exclusively(storage)
    assert storage.entries() == []


@pytest.mark.parametrize("number", NO_HARD_LINKS)
def test_a_disk_without_hard_links_still_creates_exclusively(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def link(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    assert creates_exclusively(Storage(str(tmp_path)))


def test_bytes_that_come_back_changed_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Storage, "_get", lambda storage, path: b"<html>Sign in</html>")
    with pytest.raises(StorageError, match="returned different bytes from those written"):
        check_writable(Storage(str(tmp_path)))


@pytest.mark.parametrize(("free", "is_full"), [(0, False), (1, True), (2**26, False)])
def test_no_free_block_means_that_the_disk_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, is_full: bool
) -> None:
    """Mounts of object stores report 0 free blocks."""
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match="disk is full") if is_full else nullcontext():
        check_writable(Storage(str(tmp_path)))
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("found", ["data", "data/images"])
@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EXDEV, "a volume of its own is mounted there; an output must be on one volume"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "the file system is read-only"),
    ],
)
def test_a_folder_of_the_output_that_cannot_be_written_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str, found: str
) -> None:
    """As where a volume is mounted, or another user has made a folder."""
    folders = ("data/images", "gallery/data")
    (tmp_path / found).mkdir(parents=True)
    check_writable(Storage(str(tmp_path)), folders)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if target.is_relative_to(tmp_path / "data"):
            raise OSError(number, os.strerror(number), target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    check_writable(Storage(str(tmp_path)))
    with pytest.raises(StorageError, match=f"Cannot write to {tmp_path}/data: {reason}"):
        check_writable(Storage(str(tmp_path)), folders)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_probe_that_a_killed_run_has_left_is_no_file_and_goes_with_the_next_run(
    tmp_path: Path,
) -> None:
    left = tmp_path / "data" / FOLDER_PROBE
    left.parent.mkdir()
    left.write_bytes(b"rudalle-flows")
    storage = Storage(str(tmp_path))
    assert storage.list() == []
    check_writable(storage, ("data",))
    assert not left.exists()


def test_the_clock_of_the_storage_counts(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Storage, "modified", lambda storage, path: 1000.0)
    assert current_time(storage) == 1000
    monkeypatch.setattr(Storage, "modified", lambda storage, path: None)
    assert abs(current_time(storage) - time.time()) < 5
