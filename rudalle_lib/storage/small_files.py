"""Read small local files whose content is not trusted: settings, vocabularies, records.

Errors are `OSError`, or `ValueError` with a clause such as "it is a Git LFS pointer". The caller
knows which file of what it is, and says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rudalle_lib.storage.file_kinds import (
    EMPTY,
    HEAD_BYTES,
    HTML_PAGE,
    JSON_TEXT,
    LFS_POINTER,
    kind_of,
)

MAX_JSON_BYTES = 2**20
"""Largest file of settings."""

MAX_VOCABULARY_BYTES = 16 * 2**20
"""Largest file of a vocabulary. Published ones have up to 3 MB."""

MAX_PIECES = 2**19
"""Largest number of pieces of a vocabulary. Published ones have up to 65,001."""

TEXT = "text"

ADVICE = {
    LFS_POINTER: "a few lines that stand for a large file; run `git lfs pull` in its folder, or "
    "download the file itself",
    HTML_PAGE: "what a server shows to people; download the file itself, signed in if it asks for "
    "that",
    JSON_TEXT: "probably the answer of a server that did not send the file; download it again",
    "an XML document": "probably the answer of a server that did not send the file; download it "
    "again",
    TEXT: "probably the answer of a server that did not send the file; download it again",
    EMPTY: "delete it and download it again",
}
"""What to do about files that are often found in place of others."""


def read_small(path: Path, max_bytes: int, *accepted: str) -> bytes:
    """Read a file of bounded size.

    Args:
        path: the file; not a folder, pipe or device.
        max_bytes: largest accepted size.
        accepted: kinds that the file may have, as `kind_of` names them. Those that it cannot tell
            are accepted too.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, or of another kind.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if accepted:
        check_kind(content[:HEAD_BYTES], *accepted)
    if len(content) > max_bytes:
        raise ValueError(f"it has more than {max_bytes:,} bytes")
    return content


def read_small_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object from a file of bounded size.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, is not JSON, or holds no object.
    """
    content = read_small(path, max_bytes, JSON_TEXT)
    try:
        found = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}, expected a JSON object")
    return found


def check_kind(head: bytes, *accepted: str) -> None:
    """Check that a file is not something that is often found in place of others.

    Args:
        head: its first `HEAD_BYTES` bytes.
        accepted: kinds that it may have.

    Raises:
        ValueError: it is something else, with advice.
    """
    kind = kind_of(head)
    if kind is None or kind in accepted:
        return
    advice = ADVICE.get(kind)
    raise ValueError(f"it is {kind}" + (f", {advice}" if advice else ""))


def read_vocabulary(path: Path) -> dict[str, int]:
    """Read a JSON object of ids by piece.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, or of another kind.
    """
    ids = read_small_json(path, MAX_VOCABULARY_BYTES)
    if len(ids) > MAX_PIECES:
        raise ValueError(f"it has {len(ids):,} pieces; at most {MAX_PIECES:,} are read")
    if not all(type(id_) is int and 0 <= id_ < 2**24 for id_ in ids.values()):
        raise ValueError("expected an id from 0 per piece")
    return ids
