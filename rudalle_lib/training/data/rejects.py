"""Why a row of a dataset is not learnt from. The others are, and training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal, get_args

from rudalle_lib.schema.records import REJECT_TEXT_LENGTH

DataReason = Literal[
    "no_caption",
    "bad_caption",
    "long_caption",
    "no_image",
    "unreadable_image",
    "bad_image",
    "wrong_size",
    "same_name",
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
    "bad_row": "the row of a table cannot be read",
    "damaged_file": "a file of several is damaged; its rows are missing from there on",
})  # fmt: skip
"""Each reason in words, for people; the table in docs/training.md is the same."""

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
