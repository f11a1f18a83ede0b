"""Digests of JSON values, equal on all machines and versions, and of written streams."""

from __future__ import annotations

import hashlib
import io
import json
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

CANONICAL = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
)
"""Encoder of `canonical_json`, created once because it runs for every row of a prompt table."""


def canonical_json(value: Any) -> str:
    """The canonical JSON of a value: sorted keys, no whitespace, no unnecessary escapes.

    Raises:
        TypeError: JSON cannot represent a type in the value.
        ValueError: the value contains NaN or an infinite number, or refers to itself.
    """
    return CANONICAL.encode(value)


def digest_of(value: Any) -> str:
    """128-bit BLAKE2b digest of a JSON value, as 32 hex digits.

    Raises:
        TypeError: JSON cannot represent a type in the value.
        ValueError: the value contains NaN or an infinite number, or refers to itself.
    """
    return digest_of_bytes(canonical_json(value).encode())


def digest_of_bytes(content: bytes) -> str:
    """128-bit BLAKE2b digest of bytes, as 32 hex digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class DigestingStream(io.RawIOBase):
    """A stream that forwards all writes to another stream, and computes their SHA-256.

    Closing it leaves the other stream open.

    Attributes:
        written: bytes written so far.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._sha256 = hashlib.sha256()
        self.written = 0

    def writable(self) -> bool:
        """True, as required of writable streams."""
        return True

    def write(self, content: ReadableBuffer, /) -> int:
        """Write all bytes; returns their number."""
        self._sha256.update(content)
        size = self._stream.write(content)
        self.written += size
        return size

    def hexdigest(self) -> str:
        """SHA-256 of all bytes written so far, in hex."""
        return self._sha256.hexdigest()
