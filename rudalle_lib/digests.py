"""Digests of plain values: equal values, equal digests, on every machine and in every version."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no blanks, no escapes beyond JSON's own.

    Raises `TypeError` or `ValueError` for values that JSON cannot hold (NaN included).
    """
    return json.dumps(
        value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
    )


def digest_of(value: Any) -> str:
    """32 hex characters (128 bits of BLAKE2b) of a plain JSON value."""
    return digest_of_bytes(canonical_json(value).encode())


def digest_of_bytes(content: bytes) -> str:
    """32 hex characters (128 bits of BLAKE2b) of some bytes."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()
