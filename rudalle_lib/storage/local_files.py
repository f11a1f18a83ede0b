"""Atomic writes below one local folder, through temporary files in its `.tmp/`."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO, cast

from rudalle_lib.errors import StorageError
from rudalle_lib.storage.guards import check_guard

TEMPORARY_FOLDER = ".tmp"
"""Folder in which files are written before they are renamed into place."""

TEMPORARY_NAME = re.compile(r"(probe-)?[0-9a-f]{32}")
"""Names of files in the temporary folder."""

FOLDER_PROBE = ".rudalle-flows-probe"
"""Name of the file that shows whether a folder can be written. It is always the same, so what a
killed run has left is replaced and deleted by the next one."""

NO_HARD_LINKS = (
    errno.EPERM,
    errno.EACCES,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EMLINK,
    errno.EXDEV,  # AFS and mergerfs, between two folders
    errno.EINVAL,
)
"""What file systems without hard links answer: FAT, rclone mounts, gcsfuse, some of NFS."""


@contextmanager
def replacing(root: str, target: Path) -> Iterator[BinaryIO]:
    """Open a new temporary file, and rename it to `target` when the block ends.

    If the block raises, the temporary file is deleted and `target` stays as it was.
    """
    temporary = _new_temporary(root)
    try:
        with _open_new(temporary) as stream:
            yield stream
        check_guard(root)
        try:
            os.replace(temporary, target)
        except FileNotFoundError:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A new file beside `path`, which takes its place when the block ends.

    For files outside of an output, with one writer. After a crash or a power cut there is the old
    file, or the new one whole. If the block raises, the old file stays.
    """
    fresh = path.with_name(f".{path.name}.new")
    try:
        yield fresh
        _flush(fresh)
        fresh.replace(path)
        _flush(path.parent)
    finally:
        fresh.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Let a file, or the names in a folder, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync(root: str) -> None:
    """Flush the file system of a folder: files, names and folders survive a power cut then."""
    try:
        folder = os.open(root, os.O_RDONLY)
    except FileNotFoundError:  # nothing was written yet
        return
    try:
        if (syncfs := _syncfs()) is None:
            os.sync()
        elif syncfs(folder) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), root)
    finally:
        os.close(folder)


@cache
def _syncfs() -> Callable[[int], int] | None:
    """Linux's system call, which Python does not have; None elsewhere."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    return None if function is None else cast(Callable[[int], int], function)


def reject_links(root: str, parts: Sequence[str]) -> None:
    """Check that no part of a path below a folder is a symbolic link.

    Somebody else may have put it there, and what it points to is not ours to write or delete.

    Raises:
        StorageError: a part is a link.
    """
    path = root
    for part in parts:
        path = f"{path}/{part}"
        if os.path.islink(path):
            raise StorageError(
                f"{path} is a symbolic link; links below an output are not followed. Remove it, or "
                "let the output as a whole be a link."
            )


def create(root: str, target: Path, content: bytes) -> bool:
    """Write a file unless it exists, by a hard link to a finished temporary file.

    Returns:
        Whether this call wrote the file.
    """
    temporary = _new_temporary(root)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _open_new(temporary) as file:
            file.write(content)
        check_guard(root)
        try:
            os.link(temporary, target)
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            with target.open("xb") as file:
                file.write(content)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def sweep_temporary(root: str, older_than_seconds: float) -> None:
    """Delete temporary files that killed writers left behind.

    Only regular files named like `TEMPORARY_NAME` are deleted. Links are never followed.

    Args:
        root: the folder that contains `.tmp/`.
        older_than_seconds: delete files that have not been modified for longer than this. Age is
            relative to the modification time of a file written there now, because the clock of a
            file server may differ from the clock of this machine.
    """
    folder = Path(root, TEMPORARY_FOLDER)
    if folder.is_symlink() or not folder.is_dir():
        return
    oldest = _current_time_ns(_new_temporary(root)) - int(older_than_seconds * 1e9)
    with os.scandir(folder) as entries:
        for entry in entries:
            if TEMPORARY_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):  # its writer has just finished
                    if entry.stat(follow_symlinks=False).st_mtime_ns < oldest:
                        os.unlink(entry)


def walk(folder: str) -> Iterator[str]:
    """The paths of all files below a folder; none if it does not exist."""
    for parent, _, names in os.walk(folder, onerror=_raise_unless_missing):
        for name in names:
            yield f"{parent}/{name}"


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _new_temporary(root: str) -> Path:
    reject_links(root, (TEMPORARY_FOLDER,))
    return Path(root, TEMPORARY_FOLDER, uuid.uuid4().hex)


def _open_new(path: Path) -> BinaryIO:
    try:
        return path.open("xb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")


def _current_time_ns(new_file: Path) -> int:
    """The time on the clock of a file system, in nanoseconds since 1970."""
    try:
        with _open_new(new_file) as file:
            file.write(b"\0")
        return new_file.stat().st_mtime_ns
    finally:
        new_file.unlink(missing_ok=True)
