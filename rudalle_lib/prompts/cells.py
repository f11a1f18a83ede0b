"""The cells of a prompt table: what each known column may hold, and what it means.

A cell that cannot be used raises `RejectedError`, whose reason and detail become those of the row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any
from uuid import UUID

from rudalle_lib.prompts.prompt_texts import normalise
from rudalle_lib.schema.borders import Borders
from rudalle_lib.schema.ranges import RANGES, Range
from rudalle_lib.schema.records import Reason
from rudalle_lib.storage.urls import UrlError, check_url, public_url, storable_url

MAX_TEXT = 10_000
"""The longest prompt, in characters."""

MAX_URI = 2_000
"""The longest URI of an image prompt, in characters."""

MAX_ID_LENGTH = 64
"""The longest prompt id, in characters."""

MAX_FLOAT_ID = 2**53
"""Floats from here on do not tell neighbouring whole numbers apart."""

PROMPT_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
LANGUAGE = re.compile(r"[a-z]{2,3}")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class RejectedError(Exception):
    """A row that becomes a reject."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason: Reason = reason
        self.detail = detail


def prompt_text(value: Any) -> str:
    """A prompt, normalised."""
    if value is None:
        raise RejectedError("empty_prompt", "expected a prompt, found nothing")
    if isinstance(value, bytes):
        detail = "the prompt is not valid UTF-8 text (see prompts.encoding)"
        raise RejectedError("bad_type", detail)
    if not isinstance(value, str):
        raise RejectedError(
            "bad_type", f"expected text as the prompt, found {type(value).__name__}"
        )
    if len(value) > MAX_TEXT:
        detail = f"the prompt has {len(value):,} characters; expected at most {MAX_TEXT:,}"
        raise RejectedError("too_long", detail)
    text = normalise(value)
    if not text:
        detail = "the prompt contains only white space or invisible characters"
        raise RejectedError("empty_prompt", detail)
    if not text.isascii() and LONE_SURROGATE.search(text):
        raise RejectedError("bad_type", "the prompt is not valid UTF-8 text")
    return text


def checked_id(value: Any) -> str:
    """A prompt id."""
    text = _id_text(value)
    if isinstance(text, str) and PROMPT_ID.fullmatch(text):
        return text
    raise RejectedError(
        "bad_prompt_id",
        "expected at most 64 letters, digits, '_', '-' and '.', starting with neither '-' nor '.', "
        f"found {shorten(value)}",
    )


def _id_text(value: Any) -> Any:
    """The text of an id, also of a whole number that a table stores as another kind of number."""
    if isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < MAX_FLOAT_ID:
        return str(int(value))
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
        return f"{value:.0f}" if value.adjusted() < MAX_ID_LENGTH else value
    if isinstance(value, int | UUID):
        return str(value)
    return value.strip(" \t") if isinstance(value, str) else value


def language_code(value: Any) -> str:
    """A language code, without a region."""
    if isinstance(value, str):
        code = re.split("[-_]", value.strip().lower())[0]
        if LANGUAGE.fullmatch(code):
            return code
    raise RejectedError(
        "bad_type", f"expected a language code such as ru or en, found {shorten(value)}"
    )


def overrides_of(settings: Iterable[tuple[str, Any]]) -> dict[str, int | float | str]:
    """The settings that a row overrides; null, empty text and NaN override nothing."""
    overrides: dict[str, int | float | str] = {}
    for name, value in settings:
        if value is None or is_missing(value):
            continue
        if name in RANGES:
            number = _number_in(RANGES[name], value)
            if number is None:
                detail = f"{name} must be {RANGES[name]}, found {shorten(value)}"
                raise RejectedError("bad_override", detail)
            overrides[name] = number
        else:
            overrides[name] = _image_uri(value) if name == "image_prompt" else _borders(value)
    if ("image_prompt" in overrides) != ("image_prompt_borders" in overrides):
        detail = "image_prompt and image_prompt_borders belong together; found only one of them"
        raise RejectedError("bad_image_prompt", detail)
    return overrides


def is_missing(value: Any) -> bool:
    """Whether a cell gives nothing: null, NaN, or a text without visible characters."""
    if isinstance(value, str):
        return not value or value.isspace()
    return value is None or bool(value != value)


def _image_uri(value: Any) -> str:
    """The URI of an image, without a signature."""
    if not isinstance(value, str) or len(value) > MAX_URI or not value.strip().isprintable():
        detail = f"image_prompt must be a path or URL of an image, found {shorten(value)}"
        raise RejectedError("bad_image_prompt", detail)
    try:
        return storable_url(check_url(value.strip()))
    except UrlError as error:
        raise RejectedError("bad_image_prompt", f"image_prompt: {error}") from None


def _borders(value: Any) -> str:
    """Borders in their canonical form."""
    try:
        return str(Borders.parse(value))
    except ValueError as error:
        raise RejectedError("bad_image_prompt", f"image_prompt_borders: {error}") from None


def _number_in(allowed: Range, value: Any) -> int | float | None:
    """The value as a number of the allowed kind, None if it is not one or out of range."""
    if isinstance(value, Decimal) and value.is_finite() and value.adjusted() < MAX_ID_LENGTH:
        value = int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        if isinstance(value, str):  # also "8.0": an integer column with gaps becomes floats
            value = int(value) if value.strip().lstrip("+-").isdecimal() else float(value)
        number = allowed.kind(value)
    except (ValueError, OverflowError):
        return None
    return number if number == value and number in allowed else None


def shorten(value: Any) -> str:
    """A value for people, of at most 80 characters."""
    text = repr(public_url(value) if isinstance(value, str) else value)
    text = text.encode(errors="replace").decode()
    return text if len(text) <= 80 else text[:77] + "..."
