"""Faults of an output, the state of an audit, and functions that check files as they read them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from rudalle_lib.config.run import RunConfig
from rudalle_lib.errors import StorageError, TransientError
from rudalle_lib.schema.records import DataFile, RunManifest, ShardManifest
from rudalle_lib.storage.storage import Storage

Row = Mapping[str, Any]
"""A row of a table: values by column."""

FaultKind = Literal[
    "unfinished", "missing", "damaged", "count", "column", "image", "label", "duplicate",
    "orphan", "score",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """Something in an output that differs from what its manifests say.

    Attributes:
        kind: Kind of the fault.
        path: The faulty file.
        detail: What was expected and what was found.
        shard: The shard that would have to be redone, if any.
    """

    kind: FaultKind
    path: str
    detail: str
    shard: int | None = None


@dataclass
class Audit:
    """The results of an audit.

    Attributes:
        checked: How many things were checked, by what they are.
        faults: Everything that is wrong.
        notes: Remarks for people that are not faults.
        run: `run.json`, if it is intact.
        config: The configuration in it, if this version can use it.
        manifests: Manifests of the finished shards.
        as_recorded: The finished shards whose images and scores were made as `run.json` says.
    """

    checked: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    run: RunManifest | None = None
    config: RunConfig | None = None
    manifests: list[ShardManifest] = field(default_factory=list)
    as_recorded: set[int] = field(default_factory=set)

    def add(self, kind: FaultKind, path: str, detail: str, shard: int | None = None) -> None:
        """Add a fault."""
        self.faults.append(Fault(kind, path, detail, shard))


@dataclass
class Seen:
    """What an audit has come across so far.

    Attributes:
        files: Files that a plan, manifest or metadata row refers to.
        open_shards: Shards that are not finished, or whose tables cannot be read.
        prompts: Ids of prompts.
        images: Ids of images.
        contents: Image id by a digest of the pixels.
        outdated: Columns that are stored under a former name: current name by former name.
        outdated_shards: Shards with such columns.
        terms: Highest term of the manifests of each shard.
    """

    files: set[str] = field(default_factory=set)
    open_shards: set[int] = field(default_factory=set)
    prompts: set[str] = field(default_factory=set)
    images: set[str] = field(default_factory=set)
    contents: dict[str, str] = field(default_factory=dict)
    outdated: dict[str, str] = field(default_factory=dict)
    outdated_shards: set[int] = field(default_factory=set)
    terms: dict[int, int] = field(default_factory=dict)


def read_content(storage: Storage, file: DataFile, index: int | None, audit: Audit) -> bytes | None:
    """The bytes of a file; None, and a fault of shard `index`, if they are not as described."""
    try:
        content = storage.read_bytes_if_any(file.path)
    except TransientError:
        raise
    except StorageError as error:  # a folder or a link is in its place, or a sector cannot be read
        audit.add("damaged", file.path, str(error), index)
        return None
    if content is None:
        audit.add("missing", file.path, "the file does not exist", index)
        return None
    return content if is_as_described(content, file, index, audit) else None


def is_as_described(content: bytes, file: DataFile, index: int | None, audit: Audit) -> bool:
    """Whether content has the size and digest of `file`; if not, adds a fault of shard `index`."""
    audit.checked["bytes"] += len(content)
    digest = hashlib.sha256(content).hexdigest()
    if (len(content), digest) != (file.bytes, file.sha256):
        detail = (
            f"expected {file.bytes:,} bytes with SHA-256 {file.sha256[:12]}..., found "
            f"{len(content):,} with {digest[:12]}..."
        )
        audit.add("damaged", file.path, detail, index)
        return False
    return True


def read_sealed(storage: Storage, path: str, audit: Audit, index: int | None) -> pa.Table | None:
    """A sealed table; None, and a fault of shard `index`, if it is missing or damaged."""
    try:
        return storage.read_table(path)
    except TransientError:
        raise
    except StorageError as error:
        audit.add("damaged", path, str(error), index)
        return None
