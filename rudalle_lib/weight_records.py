"""Digests of weights files, and records that spare hashing gigabytes again.

A checkpoint that is not safetensors gets a copy that is, once (see `conversion`). Copy and record
lie in `.rudalle-flows` beside the checkpoint, or, where that cannot be written, in the user's
cache. A record counts while the checkpoint's size and time are those it was made from.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path

from rudalle_lib.digests import digest_of

BESIDE = ".rudalle-flows"
"""Folder of copies, next to the checkpoints."""


@dataclasses.dataclass(frozen=True)
class Record:
    """What is known of a checkpoint and of its copy.

    Attributes:
        size, modified: of the checkpoint, in bytes and in nanoseconds.
        sha256: of the checkpoint.
        copy_sha256: of the copy.
    """

    size: int
    modified: int
    sha256: str
    copy_sha256: str

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """The record in a file; None if there is none that can be read."""
        try:
            return cls(**json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def text(self) -> str:
        """The record as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def fits(self, checkpoint: Path) -> bool:
        """Whether the checkpoint is, by size and time, the one that this was made from."""
        status = checkpoint.stat()
        return (status.st_size, status.st_mtime_ns) == (self.size, self.modified)


def folders(checkpoint: Path) -> tuple[Path, Path]:
    """Where a copy may lie, the preferred place first."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = digest_of(str(checkpoint.parent.resolve()))
    return checkpoint.parent / BESIDE, cache / "rudalle-flows" / "weights" / place


def copy_path(folder: Path, checkpoint: Path) -> Path:
    """The safetensors copy of a checkpoint in one of its folders."""
    return folder / f"{checkpoint.name}.safetensors"


def record_path(folder: Path, checkpoint: Path) -> Path:
    """The record of a checkpoint in one of its folders."""
    return folder / f"{checkpoint.name}.json"


def find_record(checkpoint: Path) -> tuple[Record, Path] | None:
    """The record of a checkpoint and the folder that it lies in, if it counts."""
    for folder in folders(checkpoint):
        record = Record.read(record_path(folder, checkpoint))
        if record is not None and record.fits(checkpoint):
            return record, folder
    return None


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hex: from its record, or hashed and kept in this process.

    Kept and recorded digests count while the time and size of the file are the same.
    """
    found = find_record(path)
    return found[0].sha256 if found is not None else hashed(path)


def hashed(path: Path) -> str:
    """SHA-256 of a file in hex, by reading it; in one process once."""
    status = path.stat()
    return _hashed(path.resolve(), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=256)
def _hashed(path: Path, _modified: int, _size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
