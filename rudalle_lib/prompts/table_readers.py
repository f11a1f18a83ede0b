"""The formats of prompt tables: a file becomes a stream of blocks of rows.

A block has the known columns as Python values, and all other columns as an Arrow table. Parquet
keeps the types of the other columns (see `column_types`). Those of CSV and JSON become text. A line
that cannot be parsed as a row is a `BadRow`, never an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import BinaryIO
from urllib.parse import urlsplit

from rudalle_lib.errors import PromptError
from rudalle_lib.prompts.blocks import Block, TableOptions
from rudalle_lib.prompts.budgets import Budget
from rudalle_lib.prompts.csv_reader import read_csv
from rudalle_lib.prompts.json_reader import read_json, read_jsonl
from rudalle_lib.prompts.parquet_reader import read_parquet
from rudalle_lib.prompts.text_streams import CODECS, fed, spooled, unpacked, utf8
from rudalle_lib.storage.file_kinds import (
    CONTROL,
    HEAD_BYTES,
    HTML_PAGE,
    LFS_POINTER,
    SIGNATURES,
    kind_of,
)
from rudalle_lib.storage.small_files import ADVICE


def format_of(url: str) -> tuple[str, str | None] | None:
    """The suffix of a table's format and Arrow's name of its compression, by its name.

    Args:
        url: path or URL of the table.

    Returns:
        None if the name is not that of a prompt table.
    """
    path = PurePosixPath(urlsplit(url).path if url.startswith(("http://", "https://")) else url)
    suffix, codec = path.suffix.lower(), None
    if suffix in CODECS:
        codec, suffix = CODECS[suffix], PurePosixPath(path.stem).suffix.lower()
    return (suffix, codec) if suffix in SUFFIXES else None


def read_blocks(
    stream: BinaryIO, url: str, name: str, options: TableOptions, budget: Budget
) -> Iterator[Block]:
    """Read a file in blocks.

    Args:
        stream: the open file.
        url: its path or URL; the suffix determines the format.
        name: its name in errors.
        options: how it is read.
        budget: what compressed files unpack to is charged to it.

    Raises:
        PromptError: the suffix is unknown, or the file does not have that format.
    """
    found = format_of(url)
    if found is None:
        suffix = PurePosixPath(name).suffix.lower()
        raise PromptError(
            f"Unknown format of the prompt table {name}: expected a name that ends in one of "
            f"{', '.join(SUFFIXES)}, or in one of them and {' or '.join(CODECS)}, found "
            f"{repr(suffix) if suffix else 'no suffix'}."
        )
    suffix, codec = found
    if codec is None and suffix in PARQUET:
        yield from _read_parquet(stream, name, options, budget)
        return
    content = fed(stream, budget) if codec is None else unpacked(stream, codec, name, budget)
    with content:
        if suffix in PARQUET:
            with spooled(content) as copy:
                yield from _read_parquet(copy, name, options, budget)
            return
        _check_text(content.peek(HEAD_BYTES)[:HEAD_BYTES], name)
        for block in _TEXT_READERS[suffix](content, name, options):
            columns = len(block.values) + block.extras.num_columns
            budget.spend(rows=len(block.bad))
            budget.spend(rows=len(block.numbers), columns=columns)
            yield block


def _check_text(head: bytes, name: str) -> None:
    """Check that a file is not something that is often found in place of a table of text."""
    kind = kind_of(head)
    is_other = kind in OTHER_KINDS and (kind == LFS_POINTER or CONTROL.search(head))
    if kind == HTML_PAGE or is_other:
        raise PromptError(_something_else(name, str(kind)))


def _read_parquet(
    stream: BinaryIO, name: str, options: TableOptions, budget: Budget
) -> Iterator[Block]:
    try:
        yield from read_parquet(stream, name, options, budget)
    except PromptError:
        stream.seek(0)
        kind = kind_of(stream.read(HEAD_BYTES))
        if kind == HTML_PAGE or kind in OTHER_KINDS - {"a Parquet table"}:
            raise PromptError(_something_else(name, str(kind))) from None
        raise


def _something_else(name: str, kind: str) -> str:
    advice = ADVICE.get(kind, "whatever its name says")
    return f"The prompt table {name} is {kind}, {advice}; expected one of {', '.join(SUFFIXES)}."


def _read_csv(
    stream: BinaryIO, name: str, options: TableOptions, delimiter: str = ","
) -> Iterator[Block]:
    return read_csv(utf8(stream, name, options.encoding), name, options, delimiter)


def _read_tsv(stream: BinaryIO, name: str, options: TableOptions) -> Iterator[Block]:
    return _read_csv(stream, name, options, "\t")


def _read_jsonl(stream: BinaryIO, name: str, options: TableOptions) -> Iterator[Block]:
    return read_jsonl(utf8(stream, name, options.encoding, guess=False), name, options)


def _read_json(stream: BinaryIO, name: str, options: TableOptions) -> Iterator[Block]:
    return read_json(utf8(stream, name, options.encoding, guess=False), name, options)


OTHER_KINDS = {kind for _, kind in SIGNATURES}
"""What begins with a signature; a text may begin with the letters of one by chance."""

PARQUET = (".parquet", ".pq")
"""Suffixes of Parquet files."""

_TEXT_READERS: Mapping[str, Callable[[BinaryIO, str, TableOptions], Iterator[Block]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
}

SUFFIXES = (*PARQUET, *_TEXT_READERS)
"""The ends of the names of prompt tables."""
