"""Faults of an output, what is gathered while they are looked for, and reading without trust."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from rudalle_lib.config import RunConfig
from rudalle_lib.errors import StorageError
from rudalle_lib.records import (
    DataFile,
    RunManifest,
    ShardManifest,
)
from rudalle_lib.storage import Storage

Row = Mapping[str, Any]
"""A row of a table, by column."""

Kind = Literal[
    "unfinished", "missing", "damaged", "count", "column", "picture", "label", "duplicate",
    "orphan", "score",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as the manifests say; `shard` is the one that would have to be redone.

    `detail` says what was expected and found.
    """

    kind: Kind
    path: str
    detail: str
    shard: int | None = None


@dataclass
class Audit:
    """What was looked at, by what it is, and what was wrong with it.

    `notes` are for people, and no faults. `run` is `run.json` where it is whole, `config` what it
    asks for, `manifests` are those of the finished shards; `as_recorded` are the ones of them whose
    images and scores were made as `run.json` says.
    """

    checked: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    run: RunManifest | None = None
    config: RunConfig | None = None
    manifests: list[ShardManifest] = field(default_factory=list)
    as_recorded: set[int] = field(default_factory=set)

    def add(self, kind: Kind, path: str, detail: str, shard: int | None = None) -> None:
        """Note a fault."""
        self.faults.append(Fault(kind, path, detail, shard))


@dataclass
class Known:
    """What has been met so far: files by what names them, ids of prompts and images."""

    files: set[str] = field(default_factory=set)
    open_shards: set[int] = field(default_factory=set)
    prompts: set[str] = field(default_factory=set)
    images: set[str] = field(default_factory=set)
    contents: dict[str, str] = field(default_factory=dict)  # image by SHA-256


def read_content(storage: Storage, file: DataFile, index: int, audit: Audit) -> bytes | None:
    """The bytes of a file, if they are those that its row or manifest describes."""
    content = storage.read_bytes_if_any(file.path)
    if content is None:
        audit.add("missing", file.path, "named, but not there", index)
        return None
    return content if is_as_described(content, file, index, audit) else None


def is_as_described(content: bytes, file: DataFile, index: int, audit: Audit) -> bool:
    """Whether a file has the size and digest that its row or manifest gives."""
    audit.checked["bytes"] += len(content)
    found = hashlib.sha256(content).hexdigest()
    if (len(content), found) != (file.bytes, file.sha256):
        detail = (
            f"expected {file.bytes:,} bytes with SHA-256 {file.sha256[:12]}..., found "
            f"{len(content):,} with {found[:12]}..."
        )
        audit.add("damaged", file.path, detail, index)
        return False
    return True


def read_sealed(storage: Storage, path: str, audit: Audit, index: int | None) -> pa.Table | None:
    """A sealed table, if it is whole."""
    try:
        return storage.read_table(path)
    except StorageError as error:
        audit.add("damaged", path, str(error), index)
        return None
