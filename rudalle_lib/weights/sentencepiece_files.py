"""Check SentencePiece models, which are read by a library in C++, before they are loaded.

The library checks what it reads. But a model of a few megabytes may replace one character of a text
by megabytes, so the lengths of such replacements are checked here.

Format: `sentencepiece_model.proto` of https://github.com/google/sentencepiece, in the encoding of
Protocol Buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rudalle_lib.storage.small_files import read_small

MAX_MODEL_BYTES = 16 * 2**20
"""Largest model. Those of OPUS-MT have 0.8 MB."""

MAX_REPLACEMENT = 256
"""Largest replacement of a character in bytes. The longest one of Unicode's NFKC form has 33."""

_TRAINER, _NORMALIZER, _DENORMALIZER, _UNKNOWN_SURFACE, _CHARACTERS = 2, 3, 5, 44, 2
_FIXED_SIZES = {1: 8, 5: 4}


def check_sentencepiece(path: Path) -> None:
    """Check the size of a model, and what it replaces characters by.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a SentencePiece model, or one of its replacements is too long. The
            message is a clause.
    """
    for number, part in _fields(read_small(path, MAX_MODEL_BYTES, "text")):
        if number == _TRAINER:
            replacements = [value for key, value in _fields(part) if key == _UNKNOWN_SURFACE]
        elif number in (_NORMALIZER, _DENORMALIZER):
            tables = [value for key, value in _fields(part) if key == _CHARACTERS]
            replacements = [text for table in tables for text in _replacements(table)]
        else:
            continue
        if any(len(text) > MAX_REPLACEMENT for text in replacements):
            raise ValueError(f"it replaces a character by more than {MAX_REPLACEMENT} bytes")


def _replacements(table: bytes) -> list[bytes]:
    """The texts of a table of characters: the size of a trie, the trie, and texts that end in 0."""
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    return texts.split(b"\0")


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Numbers and contents of the fields of a message that hold bytes."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag & 7 == 2:
            size, position = _varint(message, position)
            if position + size > len(message):
                raise ValueError("it is truncated, or not a SentencePiece model")
            yield tag >> 3, message[position : position + size]
            position += size
        elif tag & 7 == 0:
            _, position = _varint(message, position)
        elif tag & 7 in _FIXED_SIZES:
            position += _FIXED_SIZES[tag & 7]
        else:
            raise ValueError("it is not a SentencePiece model")


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """A number and the position after it."""
    value = shift = 0
    while shift < 70 and position < len(message):
        byte = message[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
    raise ValueError("it is truncated, or not a SentencePiece model")
