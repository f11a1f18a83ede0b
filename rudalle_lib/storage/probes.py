"""What a run must know of a storage before it relies on it."""

from __future__ import annotations

import errno
import time
import uuid
from collections.abc import Collection
from contextlib import suppress
from pathlib import PurePosixPath

from rudalle_lib.errors import StorageError
from rudalle_lib.storage.errors import translate_errors
from rudalle_lib.storage.local_files import FOLDER_PROBE, TEMPORARY_FOLDER
from rudalle_lib.storage.storage import Storage

MIN_FREE_BYTES = 64 * 2**20
"""Free space that a local disk must have for a run to start."""

CONTENT = b"rudalle-flows"


def check_writable(storage: Storage, folders: Collection[str] = ()) -> None:
    """Write, read back, list and delete a small file.

    Args:
        storage: the output.
        folders: those on a local disk that exist are tried as well, and what they are in: a
            volume may be mounted there, or another user may own one.

    Raises:
        StorageError: there is no such bucket, no answer, no permission, too little space ...
    """
    probe = _new_probe()
    with translate_errors("write to", storage.url()):  # the probe's own name would tell nothing
        storage._put(probe, CONTENT)
        free = storage.free_bytes()
        if free and free < MIN_FREE_BYTES:  # mounts that report 0 don't know; the write succeeded
            storage.delete(probe)
            raise OSError(errno.ENOSPC, "less than 64 MiB are free")
        if storage._get(probe) != CONTENT:
            raise StorageError(
                f"{storage.public_path()} returned different bytes from those written; is it an "
                "object store? Check the URL and AWS_ENDPOINT_URL."
            )
    storage.list("shards")
    storage.delete(probe)
    if free is not None:
        parents = (parent.as_posix() for one in folders for parent in PurePosixPath(one).parents)
        for folder in sorted({*folders, *parents} - {"."}):
            if storage.exists(folder):
                _check_folder(storage, folder)


def _check_folder(storage: Storage, folder: str) -> None:
    probe = f"{folder}/{FOLDER_PROBE}"
    with translate_errors("write to", storage.url(folder)):
        storage._put(probe, CONTENT)
    storage.delete(probe)


def creates_exclusively(storage: Storage) -> bool:
    """Whether `Storage.create` refuses to replace a file, which a lease relies on.

    Some S3 servers ignore `If-None-Match`.
    """
    probe = _new_probe()
    try:
        storage.create(probe, CONTENT)
        return not storage.create(probe, CONTENT)
    finally:
        with suppress(StorageError):
            storage.delete(probe)


def current_time(storage: Storage) -> float:
    """Seconds since 1970 by the storage's own clock, or by this machine's if it has none."""
    probe = _new_probe()
    storage.write_bytes(probe, CONTENT)
    try:
        modified = storage.modified(probe)
    finally:
        storage.delete(probe)
    return time.time() if modified is None else modified


def _new_probe() -> str:
    return f"{TEMPORARY_FOLDER}/probe-{uuid.uuid4().hex}"
