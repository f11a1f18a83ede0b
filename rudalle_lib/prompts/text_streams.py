"""Prompt tables of text as a stream of UTF-8 lines: unpacked, recoded, with one kind of line end.

A byte that cannot be decoded stays a byte that is not UTF-8, so that only its row is rejected.
"""

from __future__ import annotations

import codecs
import functools
import io
import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import BinaryIO

import pyarrow as pa

from rudalle_lib.errors import PromptError
from rudalle_lib.prompts.budgets import LINE_BYTES, Budget

LOGGER = logging.getLogger(__name__)

CODECS = {".gz": "gzip", ".zst": "zstd"}
"""Arrow's name of a compression, by suffix."""

CHUNK = 2**20
"""Bytes that are unpacked or recoded at a time."""

SAMPLE = 2**18
"""Bytes from which the encoding and the line ends of a table are guessed."""

MAX_LINE_BYTES = 2**20
"""The longest line of a table of text; the rest of a longer line is skipped."""

MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is the beginning of this one
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order marks, and the encodings that they stand for."""

_HIGH = re.compile(rb"[\x80-\xff]")
_CYRILLIC_WORD = re.compile(rb"[\xc0-\xff\xa8\xb8]{3,}")  # in cp1251
_LOWER = re.compile(rb"[\xe0-\xff\xb8]")

Read = Callable[[int], bytes]


class _Chunks(io.RawIOBase):
    """A stream of the chunks that a function returns; the last one is empty."""

    def __init__(self, read_chunk: Callable[[], bytes | None]) -> None:
        super().__init__()
        self._read_chunk = read_chunk
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        while not self._rest:
            chunk = self._read_chunk()
            if chunk is None:
                return 0
            self._rest = chunk
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _buffered(read_chunk: Callable[[], bytes | None]) -> io.BufferedReader:
    return io.BufferedReader(_Chunks(read_chunk), CHUNK)


# --- compression -----------------------------------------------------------------------------


def unpacked(stream: BinaryIO, codec: str, name: str, budget: Budget) -> io.BufferedReader:
    """A compressed stream, unpacked while it is read.

    Args:
        stream: the compressed file.
        codec: Arrow's name of its compression.
        name: the file, for errors.
        budget: what is read and unpacked is charged to it.

    Raises:
        PromptError: while reading: it is not compressed like that, is cut off, or is a bomb.
    """
    source = pa.CompressedInputStream(pa.PythonFile(_Fed(stream, budget), "r"), codec)

    def read_chunk() -> bytes | None:
        try:
            chunk: bytes = source.read(CHUNK)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise PromptError(
                f"The prompt table {name} cannot be unpacked as {codec}: {one_line(error)}."
            ) from None
        lines = chunk.count(b"\n") + chunk.count(b"\r")
        budget.spend(len(chunk) + LINE_BYTES * lines)
        return chunk or None

    return _buffered(read_chunk)


def fed(stream: BinaryIO, budget: Budget) -> io.BufferedReader:
    """A stream whose bytes are added to a budget as they are read; closing it leaves the other."""
    return io.BufferedReader(_Fed(stream, budget), CHUNK)


def spooled(stream: BinaryIO) -> BinaryIO:
    """A copy of a stream that can be read from any position; large ones are on the disk."""
    copy = tempfile.SpooledTemporaryFile(max_size=64 * CHUNK)  # noqa: SIM115 - the caller closes it
    while chunk := stream.read(CHUNK):
        copy.write(chunk)
    copy.seek(0)
    return copy  # type: ignore[return-value]


class _Fed(io.RawIOBase):
    """A stream whose bytes are added to a budget as they are read."""

    def __init__(self, stream: BinaryIO, budget: Budget) -> None:
        super().__init__()
        self._stream, self._budget = stream, budget

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        self._budget.feed(len(content))
        return content

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


# --- encodings and line ends -------------------------------------------------------------------


def utf8(stream: BinaryIO, name: str, encoding: str | None, guess: bool = True) -> BinaryIO:
    r"""A text as UTF-8 whose lines end with `\n`, without a byte order mark.

    Args:
        stream: the text.
        name: the table, for messages.
        encoding: of the text; None recognises UTF-16 and UTF-32, and guesses Windows-1251.
        guess: whether the text may be in an encoding of one byte per character, such as cp1251.
    """
    head = stream.read(SAMPLE)
    mark, marked = next(((m, e) for m, e in MARKS if head.startswith(m)), (b"", None))
    if marked is None and encoding is None:
        marked = _without_mark(head)
        if marked is None and guess and _looks_like_cp1251(head):
            marked = "cp1251"
        if marked is not None:
            warn_once(
                f"{name} is not UTF-8; it is read as {marked}. Set prompts.encoding if that is "
                "wrong, or to be sure."
            )
    # Someone who says utf-16 need not know which of the two it is.
    if marked is None or (encoding is not None and not _agree(encoding, marked)):
        chosen, mark = encoding or "utf-8", b""
        if codecs.lookup(chosen).name in ("utf-16", "utf-32"):  # Python expects a mark
            chosen = f"{codecs.lookup(chosen).name}-le"
    else:
        chosen = marked
    chunks = _read_on(head[len(mark) :], stream)
    if codecs.lookup(chosen).name != "utf-8":
        chunks = _recoded(chunks, chosen)
    first = next(chunks, b"")
    if b"\n" not in first and b"\r" in first.rstrip(b"\r"):
        everything = _read_on_from(first, chunks)
        return _buffered(lambda: _replaced(next(everything, None)))
    rest = _read_on_from(first, chunks)
    return _buffered(lambda: next(rest, None))


def _agree(encoding: str, marked: str) -> bool:
    wanted, found = codecs.lookup(encoding).name, codecs.lookup(marked).name
    return found.startswith(wanted) or wanted == "utf-8-sig"


def _replaced(chunk: bytes | None) -> bytes | None:
    return None if chunk is None else chunk.replace(b"\r", b"\n")


def _read_on(head: bytes, stream: BinaryIO) -> Iterator[bytes]:
    yield head
    while chunk := stream.read(CHUNK):
        yield chunk


def _read_on_from(first: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from chunks


def _recoded(chunks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Chunks as UTF-8; what cannot be decoded becomes a byte that is not UTF-8."""
    decoder = codecs.getincrementaldecoder(encoding)(_KEEP_BROKEN)
    for chunk in chunks:
        yield decoder.decode(chunk).encode(errors="surrogateescape")
    yield decoder.decode(b"", True).encode(errors="surrogateescape")


def _keep_broken(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\udcff", error.end


_KEEP_BROKEN = "rudalle-keep-broken"
codecs.register_error(_KEEP_BROKEN, _keep_broken)


def _without_mark(head: bytes) -> str | None:
    """UTF-16 without a byte order mark: every second byte of Latin text is zero."""
    sample = head[:4096]
    if len(sample) < 8 or b"\0" not in sample:
        return None
    for encoding, zeros, others in (
        ("utf-16-le", sample[1::2], sample[::2]),
        ("utf-16-be", sample[::2], sample[1::2]),
    ):
        if zeros.count(0) > len(zeros) * 0.3 and others.count(0) == 0 and b"\n" in others:
            return encoding
    return None


def _looks_like_cp1251(head: bytes) -> bool:
    """Whether most lines with other letters than ASCII are Russian in Windows-1251."""
    lines = [line for line in head.splitlines()[:-1] or [head] if _HIGH.search(line)]
    wrong = [line for line in lines if not _is_utf8(line)]
    if 2 * len(wrong) <= len(lines):
        return False
    sample = b"\n".join(wrong)
    high = len(_HIGH.findall(sample))
    words = b"".join(_CYRILLIC_WORD.findall(sample))
    return (
        len(words) >= 12 and 2 * len(words) > high and 2 * len(_LOWER.findall(words)) > len(words)
    )


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


# --- lines -------------------------------------------------------------------------------------


def read_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines including their line ends; only the start of a line longer than `MAX_LINE_BYTES`."""
    while line := stream.readline(MAX_LINE_BYTES):
        part = line
        while len(part) == MAX_LINE_BYTES and not part.endswith(b"\n"):
            part = stream.readline(MAX_LINE_BYTES)
        yield line


def storable(text: str) -> str:
    """Text with lone surrogates replaced, which could not be stored as UTF-8."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def one_line(error: Exception) -> str:
    """The message of an error, in one line and without a full stop."""
    return " ".join(str(error).split()).rstrip(".")


@functools.lru_cache(maxsize=256)
def warn_once(message: str) -> None:
    """Log a warning the first time that this process has it: a table is read several times."""
    LOGGER.warning(message)
