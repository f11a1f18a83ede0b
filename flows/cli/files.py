"""Files that commands write for their user, checked before the work and written after it."""

from __future__ import annotations

import os
from pathlib import Path

from rudalle_lib.errors import StorageError


def check_writable(path: Path) -> None:
    """Check that a file can be written, before work is done for it.

    Raises:
        StorageError: when it is a folder, or its folder is missing or not writable.
    """
    try:
        if path.is_dir():
            raise StorageError(f"Cannot write {path}: it is a folder; expected the name of a file.")
        if not path.parent.is_dir():
            raise StorageError(f"Cannot write {path}: there is no folder {path.parent}.")
        allowed = os.access(path if path.exists() else path.parent, os.W_OK)
    except (OSError, ValueError) as error:
        raise _cannot_write(path, error) from None
    if not allowed:
        raise StorageError(f"Cannot write {path}: permission denied.")


def write_file(path: Path, content: bytes) -> None:
    """Write a file, or replace it.

    Raises:
        StorageError: when it cannot be written; a pipe that nobody reads is one such file.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
        os.set_blocking(descriptor, True)
        with open(descriptor, "wb") as file:
            file.write(content)
    except (OSError, ValueError) as error:
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: OSError | ValueError) -> StorageError:
    reason = error.strerror if isinstance(error, OSError) else None
    return StorageError(f"Cannot write {str(path)[:500]}: {reason or error}.")
