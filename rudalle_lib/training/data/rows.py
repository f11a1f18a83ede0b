"""The rows of a dataset as every form gives them, and which of its columns are which."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rudalle_lib.digests import digest_of_bytes
from rudalle_lib.errors import DataError, RudalleError, TransientError
from rudalle_lib.escaping import safe_text
from rudalle_lib.prompts.cells import MAX_TEXT, is_missing, prompt_text, shorten
from rudalle_lib.prompts.cells import RejectedError as CellError
from rudalle_lib.storage.filesystems import read_start
from rudalle_lib.storage.reading import Reading
from rudalle_lib.training.data.rejects import DataReason, RejectedError

CAPTION_COLUMNS = ("text_ru", "text", "caption", "prompt")
"""Names of the column of captions, the preferred one first: what a decoder reads is in Russian."""

IMAGE_COLUMNS = (
    "image",
    "picture",
    "file_name",
    "image_path",
    "image_url",
    "path",
    "url",
)
"""Names of the column of images or of their paths, the preferred one first."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Ends of the names of image files."""

MAX_CAPTION_BYTES = 4 * MAX_TEXT
"""The largest file of a caption."""


@dataclass(frozen=True, slots=True)
class FoundRow:
    """A row as it was found: neither its caption nor its image is checked.

    Attributes:
        key: its name in the dataset, such as `cats/001.png` or `train.parquet, row 7`.
        caption: the value of its caption, or a function that reads it.
        image: the content of its image file, or a function that reads it.
        stamp: what else changes if its caption or image changes; a JSON value.
        on_web: whether its image is on a web server, whose failure concerns this row alone.

    The functions raise `RejectedError` if there is no such value, and `StorageError`.
    """

    key: str
    caption: Any | Callable[[], Any]
    image: bytes | Callable[[], bytes]
    stamp: Any = None
    on_web: bool = False

    def identity(self) -> str:
        """A digest that changes if the row does."""
        caption = None if callable(self.caption) else self.caption
        image = digest_of_bytes(self.image) if isinstance(self.image, bytes) else None
        values = [self.key, caption, image, self.stamp]
        return digest_of_bytes(json.dumps(values, default=repr).encode())


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, as is clear before its image is read."""

    key: str
    reason: DataReason
    detail: str

    def identity(self) -> str:
        """A digest that changes if the row does."""
        return digest_of_bytes(json.dumps([self.key, self.reason, self.detail]).encode())


Row = FoundRow | BadRow


# --- captions ----------------------------------------------------------------------------------


def caption_of(value: Any) -> str:
    """The caption in a value: Unicode NFC with single spaces, at most `MAX_TEXT` characters.

    Raises:
        RejectedError: it is missing, or is not text.
    """
    if is_missing(value):
        raise RejectedError("no_caption", "expected a caption, found nothing")
    if isinstance(value, str):
        value = value[:MAX_TEXT]
    elif not isinstance(value, bytes):
        kind = type(value).__name__
        raise RejectedError(
            "bad_caption", f"expected text as the caption, found {kind}: {shorten(value)}"
        )
    try:
        return prompt_text(value)
    except CellError as error:
        empty = error.reason == "empty_prompt"
        reason: DataReason = "no_caption" if empty else "bad_caption"
        detail = "it shows no characters" if empty else "it is not valid UTF-8 text"
        raise RejectedError(reason, f"expected a caption, but {detail}") from None


def decode_caption(content: bytes) -> str:
    """The caption in a text file.

    Raises:
        RejectedError: it is not UTF-8, or too large.
    """
    if len(content) > MAX_CAPTION_BYTES:
        detail = f"expected a caption of at most {MAX_CAPTION_BYTES:,} bytes, found a larger file"
        raise RejectedError("bad_caption", detail)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RejectedError("bad_caption", "the file of the caption is not UTF-8 text") from None


def read_caption(url: str, rules: Reading) -> str:
    """Read the caption in a text file at a path or URL.

    Raises:
        RejectedError: it is not UTF-8, or too large.
        StorageError: it cannot be read.
    """
    return decode_caption(read_start(url, MAX_CAPTION_BYTES + 1, "caption", rules))


# --- columns -----------------------------------------------------------------------------------


def find_column(
    names: Sequence[str], given: str | None, known: Sequence[str], setting: str, where: str
) -> str:
    """Which column of a dataset is the one for captions or images.

    Args:
        names: its columns.
        given: the name in the configuration, if any.
        known: the names that are looked for otherwise, in any case.
        setting: key of the configuration, for the error.
        where: the file, for the error.

    Raises:
        DataError: there is no such column.
    """
    if given is not None:
        if given in names:
            return given
    else:
        lower = {name.lower(): name for name in reversed(names)}
        for name in known:
            if name in lower:
                return lower[name]
    wanted = repr(given) if given is not None else " or ".join(known)
    found = ", ".join(safe_text(name) for name in names[:30]) or "none"
    raise DataError(
        f"{where} has no column {wanted} for the {setting}s; its columns are {found}. Name the "
        f"right one as `{setting}` of this dataset in the configuration."
    )


def damaged_file(name: str, error: RudalleError) -> BadRow:
    """The reject for a file of several that cannot be read.

    Raises:
        TransientError: it may be readable later.
    """
    if isinstance(error, TransientError):
        raise error
    return BadRow(name, "damaged_file", str(error))
