"""Seals: a file that carries the SHA-256 of itself, so that every changed byte of it shows.

The digest is that of the file with 64 zeros in the digest's place. In Parquet the seal is metadata
of the footer, in JSON the last entry: wherever else the same words stand, in a prompt perhaps, they
stand before it or escaped, so the last mark in a file is its seal.
"""

from __future__ import annotations

import hashlib

KEY = "seal"

#: What a file is written with; `seal` puts the digest in place of the zeros.
UNSEALED = "sha256:" + 64 * "0"

#: What stands before the digest: in Parquet's footer (two strings of Thrift's compact protocol,
#: each with its length), and in our JSON.
MARKS = (b"\x18\x04seal\x18\x47sha256:", b'"seal": "sha256:')


def seal(content: bytes) -> bytes:
    """The content, which holds `UNSEALED` under `KEY`, with its digest in place of the zeros."""
    start = _digest_start(content)
    if start is None:
        raise ValueError(f"there is no {KEY} to fill in")
    return content[:start] + _digest(content, start) + content[start + 64 :]


def is_whole(content: bytes) -> bool:
    """Whether the content carries a seal, and is, byte for byte, what was sealed."""
    start = _digest_start(content)
    return start is not None and content[start : start + 64] == _digest(content, start)


def _digest_start(content: bytes) -> int | None:
    places = (content.rfind(mark) + len(mark) for mark in MARKS if mark in content)
    return max(places, default=None)


def _digest(content: bytes, start: int) -> bytes:
    digest = hashlib.sha256()
    for part in (memoryview(content)[:start], 64 * b"0", memoryview(content)[start + 64 :]):
        digest.update(part)
    return digest.hexdigest().encode()
