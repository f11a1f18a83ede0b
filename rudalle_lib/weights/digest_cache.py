"""SHA-256 of weights files, cached in records so that gigabytes are not hashed again.

A checkpoint in another format gets a safetensors copy (see `conversion`). The copy and its record
are in `.rudalle-flows` next to the checkpoint or, if that cannot be written, in the user's cache.
A record is valid while the size and modification time of the checkpoint are the recorded ones.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path

from rudalle_lib.digests import digest_of
from rudalle_lib.errors import WeightsError
from rudalle_lib.storage.small_files import read_small_json

COPIES_FOLDER = ".rudalle-flows"
"""Folder of copies and records, next to the checkpoints."""


@dataclasses.dataclass(frozen=True)
class Record:
    """Size, time and digests of a checkpoint and its copy.

    Attributes:
        size: size of the checkpoint in bytes.
        modified: modification time of the checkpoint in nanoseconds since 1970.
        sha256: digest of the checkpoint in hex.
        copy_sha256: digest of the copy in hex.
    """

    size: int
    modified: int
    sha256: str
    copy_sha256: str

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """Read a record; None if the file is missing or is not a record."""
        try:
            record = cls(**read_small_json(path))
        except (OSError, ValueError, TypeError):
            return None
        digests = (record.sha256, record.copy_sha256)
        is_valid = all(isinstance(digest, str) and len(digest) <= 64 for digest in digests)
        return record if is_valid else None

    def to_json(self) -> str:
        """The record as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def fits(self, checkpoint: Path) -> bool:
        """Whether the size and modification time of the checkpoint are the recorded ones."""
        status = checkpoint.stat()
        return (status.st_size, status.st_mtime_ns) == (self.size, self.modified)


def cache_folder() -> Path | None:
    """Our folder in the user's cache; None for a user without a home."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # HOME is not set, and the user is not in the password database
        return None
    return cache / "rudalle-flows"


def copy_folders(checkpoint: Path) -> tuple[Path, ...]:
    """Folders for the copy of a checkpoint, in order of preference."""
    beside, cache = checkpoint.parent / COPIES_FOLDER, cache_folder()
    if cache is None:
        return (beside,)
    return beside, cache / "weights" / digest_of(str(checkpoint.parent.resolve()))


def copy_path(folder: Path, checkpoint: Path) -> Path:
    """The path of a checkpoint's copy in a folder."""
    return folder / f"{checkpoint.name}.safetensors"


def record_path(folder: Path, checkpoint: Path) -> Path:
    """The path of a checkpoint's record in a folder."""
    return folder / f"{checkpoint.name}.json"


def find_record(checkpoint: Path) -> tuple[Record, Path] | None:
    """The valid record of a checkpoint and its folder; None if there is none."""
    for folder in copy_folders(checkpoint):
        record = Record.read(record_path(folder, checkpoint))
        if record is not None and record.fits(checkpoint):
            return record, folder
    return None


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hex, from its record if it has a valid one."""
    found = find_record(path)
    return found[0].sha256 if found is not None else hash_file(path)


def hash_file(path: Path) -> str:
    """SHA-256 of a file in hex.

    The file is read once per process, until its size or modification time changes.

    Raises:
        WeightsError: the file cannot be read.
    """
    try:
        status = path.stat()
        return _hash(path.resolve(), status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error


@functools.lru_cache(maxsize=256)
def _hash(path: Path, _modified: int, _size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
