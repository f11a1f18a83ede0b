"""Seals: a self-digest, that is, a SHA-256 stored inside the file that it protects.

A seal detects any changed, missing or added byte without a second file. To compute it, the 64
hex digits of the digest are set to zeros, and the whole file is hashed. In Parquet files the seal
is an entry of the footer metadata, in JSON files the last key. The same characters may also occur
in the data, for example in a prompt, but only earlier in the file or escaped. So the last mark in
a file is always its seal.
"""

from __future__ import annotations

import hashlib

KEY = "seal"
"""Name of the metadata entry or JSON key."""

UNSEALED = "sha256:" + 64 * "0"
"""Placeholder value of `KEY`, which `seal` replaces by the digest."""

MARKS = (b"\x18\x04seal\x18\x47sha256:", b'"seal": "sha256:')
"""The bytes right before the digest: in a Parquet footer (two strings of Thrift's compact protocol,
each after its length), and in JSON as `json.dumps` writes it."""


def seal(content: bytes) -> bytes:
    """Replace the placeholder in a file's content by the digest.

    Args:
        content: must hold `UNSEALED` under `KEY`.

    Raises:
        ValueError: the content has no placeholder.
    """
    start = _digest_start(content)
    if start is None:
        raise ValueError(f"the content has no placeholder: expected {UNSEALED!r} under {KEY!r}")
    return content[:start] + _digest(content, start) + content[start + 64 :]


def is_intact(content: bytes) -> bool:
    """Whether the content has a seal, and no byte has changed since it was sealed."""
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
