"""Why a row of a dataset is not learnt from. The others are, and training goes on."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass
from types import MappingProxyType
from typing import Annotated, Literal, get_args

import pyarrow as pa

from rudalle_lib.dataset import layout
from rudalle_lib.errors import DamagedError
from rudalle_lib.schema.arrow import to_table
from rudalle_lib.schema.records import REJECT_TEXT_LENGTH
from rudalle_lib.schema.tables import with_metadata
from rudalle_lib.storage.storage import Storage
from rudalle_lib.training.data.manifest import EncodedData

DataReason = Literal[
    "no_caption",
    "bad_caption",
    "long_caption",
    "no_image",
    "unreadable_image",
    "bad_image",
    "wrong_size",
    "same_name",
    "duplicate",
    "bad_row",
    "damaged_file",
]
"""Why a row is not learnt from."""

MEANINGS: Mapping[DataReason, str] = MappingProxyType({
    "no_caption": "there is no caption, or it is empty or NaN",
    "bad_caption": "the caption is not text, or no UTF-8",
    "long_caption": "it is longer than the network reads, with `long_captions: reject`",
    "no_image": "the row names no image",
    "unreadable_image": "the file or URL cannot be read: it is missing, a folder, pipe or device, "
    "not allowed, or its server does not answer",
    "bad_image": "it is no PNG, JPEG or WebP file, damaged, cut off, or too large",
    "wrong_size": "it has another size than the network, with `fit: exact`",
    "same_name": "two images or two samples have one name, so the caption may belong to either",
    "duplicate": "an earlier row of any of the datasets has the same caption and, byte by byte, "
    "the same image file; to show images more often, set `repeats`",
    "bad_row": "the row of a table cannot be read",
    "damaged_file": "a file of several is damaged; its rows are missing from there on",
})  # fmt: skip
"""Each reason in words, for people; the table in docs/training-data.md is the same."""

DATA_REASONS: tuple[DataReason, ...] = get_args(DataReason)
"""All reasons."""


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row that is not learnt from."""

    source: Annotated[str, "Dataset, as the configuration names it, without credentials"]
    row: Annotated[str, "File, or file and row, within the dataset"]
    reason: Annotated[str, "Reason code"]
    detail: Annotated[str, "Explanation: what was expected, what was found"]


class RejectedError(Exception):
    """A row that becomes a reject."""

    def __init__(self, reason: DataReason, detail: str) -> None:
        super().__init__(detail)
        self.reason: DataReason = reason
        self.detail = detail[:REJECT_TEXT_LENGTH]


# --- on disk -----------------------------------------------------------------------------------

REJECTS = "rejects"
"""Metadata key of an encoded shard: its rejects, as JSON."""


def with_rejects(table: pa.Table, rejects: Sequence[RejectedRow]) -> pa.Table:
    """An encoded shard with the rows that are not in it."""
    rows = [astuple(row) for row in rejects]
    return with_metadata(table, {REJECTS: json.dumps(rows)})


def rejects_in(storage: Storage, path: str) -> list[RejectedRow]:
    """The rows that are not in an encoded shard; reads only the end of its file."""
    metadata = storage.read_metadata(path) or {}
    return [RejectedRow(*row) for row in json.loads(metadata.get(REJECTS, "[]"))]


def publish_rejects(
    storage: Storage, data: EncodedData, more: Sequence[Sequence[RejectedRow]]
) -> None:
    """Write the rejects of all shards that have some as tables; delete those of earlier data.

    Args:
        storage: the output.
        data: the encoded data.
        more: of each shard, the rows that are in its file and not learnt from.
    """
    listed = storage.list(layout.REJECTS_FOLDER)
    earlier = {path for path in listed if layout.index_of(path, "rejects") is not None}
    for number, shard in enumerate(data.shards):
        if shard.rejects is not None and not _is_whole(storage, shard.rejects, earlier):
            rows = [*rejects_in(storage, shard.path), *more[number]]
            storage.write_table(shard.rejects, to_table(rows, RejectedRow))
    for path in sorted(earlier - {shard.rejects for shard in data.shards}):
        storage.delete(path)


def _is_whole(storage: Storage, path: str, listed: Collection[str]) -> bool:
    try:
        return path in listed and storage.check_table(path)
    except DamagedError:
        return False
