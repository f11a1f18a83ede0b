"""Digests of plain values, equal on every machine and in every version, and of what is written."""

from __future__ import annotations

import hashlib
import io
import json
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


#: Made once, because it is asked for every row of a prompt table.
CANONICAL = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
)


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no blanks, no escapes beyond JSON's own.

    Raises `TypeError` or `ValueError` for values that JSON cannot hold (NaN included).
    """
    return CANONICAL.encode(value)


def digest_of(value: Any) -> str:
    """32 hex characters (128 bits of BLAKE2b) of a plain JSON value."""
    return digest_of_bytes(canonical_json(value).encode())


def digest_of_bytes(content: bytes) -> str:
    """32 hex characters (128 bits of BLAKE2b) of some bytes."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class DigestingStream(io.RawIOBase):
    """Passes what is written on to a stream, which stays open, and digests it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._sha256 = hashlib.sha256()
        self.written = 0

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, content: ReadableBuffer, /) -> int:
        """All of it, at once; the number of bytes."""
        self._sha256.update(content)
        size = self._stream.write(content)
        self.written += size
        return size

    def hexdigest(self) -> str:
        """The SHA-256 of all that was written."""
        return self._sha256.hexdigest()
