"""Prompt tables as they lie on disk: Parquet, CSV and JSONL, streamed in blocks of rows.

A block holds the values of the columns that we know, as Python values, and all other columns as an
Arrow table. Parquet keeps the types of other columns; those of CSV and JSONL become text (in JSONL,
what isn't text becomes JSON), so that every shard of the output has the same types. A line that
cannot be read as a row is a `BadRow`, never an exception.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from rudalle_lib.errors import PromptError

#: Rows of a block, and the bytes that it should stay below.
BLOCK_ROWS = 8192
BLOCK_BYTES = 32 * 2**20

#: A column of one row group of Parquet may hold so many bytes, unpacked.
MAX_COLUMN_BYTES = 2**30

#: A longer line of CSV or JSONL is not read to its end.
MAX_LINE_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be read: its number in the table, what is wrong, its beginning."""

    number: int
    detail: str
    text: str


@dataclass(frozen=True, slots=True)
class Block:
    """Some consecutive rows: `numbers` from 1, `values` by our names, `extras` by their own."""

    numbers: Sequence[int]
    values: Mapping[str, Sequence[Any]]
    extras: pa.Table
    bad: Sequence[BadRow] = ()


@dataclass(frozen=True, slots=True)
class Columns:
    """Where our columns are in a table: `found` gives the table's name by ours."""

    found: Mapping[str, str]

    @classmethod
    def match(
        cls, names: Sequence[str], known: Sequence[str], mapping: Mapping[str, str], table: str
    ) -> Columns:
        """Find our columns (`known`, of which the first is required) among a table's `names`.

        Raises `PromptError` where a required or mapped column is missing or a name stands twice.
        """
        for name in names:
            if list(names).count(name) > 1:
                raise PromptError(f"{table} has two columns named {name!r}; names must be unique.")
        for ours in known:
            theirs = mapping.get(ours, ours)
            if theirs not in names and (ours in mapping or ours == known[0]):
                raise PromptError(
                    f"{table} has no column {theirs!r}"
                    + (f" (for {ours})" if theirs != ours else "")
                    + f"; its columns are {_listed(names)}. Name the right one as "
                    f"prompts.columns.{ours}."
                )
        return cls({n: mapping.get(n, n) for n in known if mapping.get(n, n) in names})

    def others(self, names: Sequence[str]) -> list[str]:
        """The columns that pass through."""
        ours = set(self.found.values())
        return [name for name in names if name not in ours]


Match = Callable[[Sequence[str]], Columns]


def read_blocks(stream: BinaryIO, url: str, match: Match) -> Iterator[Block]:
    """Read an open table in blocks; the format is told by the end of the URL.

    `match` finds our columns among the table's. Raises `PromptError` for another format, or a file
    that is not what its name says.
    """
    suffix = PurePosixPath(urlsplit(url).path if "://" in url else url).suffix.lower()
    reader = _READERS.get(suffix)
    if reader is None:
        raise PromptError(
            f"Cannot tell the format of the prompt table {url}: expected a name that ends in one "
            f"of {', '.join(_READERS)}, found {suffix or 'no ending'!r}."
        )
    return reader(stream, url, match)


# --- Parquet -----------------------------------------------------------------------------------


def _read_parquet(stream: BinaryIO, url: str, match: Match) -> Iterator[Block]:
    try:
        file = pq.ParquetFile(stream)
        _check_sizes(file.metadata, url)
        columns = match(file.schema_arrow.names)
        _check_text(file.schema_arrow.field(columns.found["prompt"]), url)
        first = 1
        for batch in file.iter_batches(_rows_per_block(file.metadata)):
            yield _parquet_block(pa.Table.from_batches([batch]), columns, first, url)
            first += batch.num_rows
    except pa.ArrowException as error:
        raise _not_readable(url, "Parquet", error) from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise _not_readable(url, "Parquet", error) from None


def _check_sizes(metadata: pq.FileMetaData, url: str) -> None:
    """Refuse a bomb: pages are unpacked whole, and are no larger than the column they are part of.

    Raises `PromptError`.
    """
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if column.total_uncompressed_size > MAX_COLUMN_BYTES:
                raise PromptError(
                    f"A row group of {url} unpacks to {column.total_uncompressed_size:,} bytes in "
                    f"column {column.path_in_schema!r}, at most {MAX_COLUMN_BYTES:,} are allowed; "
                    "write the table with smaller row groups."
                )


def _rows_per_block(metadata: pq.FileMetaData) -> int:
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    widest = max((g.total_byte_size / max(g.num_rows, 1) for g in groups), default=1.0)
    return max(1, min(BLOCK_ROWS, int(BLOCK_BYTES / max(widest, 1.0))))


def _check_text(field: pa.Field, url: str) -> None:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if not (_is_text(kind) or _is_binary(kind) or pa.types.is_null(kind)):
        raise PromptError(
            f"The column {field.name!r} of {url} holds {field.type}, expected text; name the "
            "right one as prompts.columns.prompt."
        )


def _parquet_block(table: pa.Table, columns: Columns, first: int, url: str) -> Block:
    values = {ours: _values(table.column(name)) for ours, name in columns.found.items()}
    extras = table.select(columns.others(table.column_names))
    numbers = range(first, first + table.num_rows)
    return Block(numbers, values, _with_valid_text(extras, url))


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Python values; text that is not valid UTF-8 stays bytes, for its row to be rejected."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if _is_text(column.type) and not _is_valid(column):
        return [_decoded(value) for value in column.cast(pa.large_binary()).to_pylist()]
    if _is_binary(column.type):
        return [_decoded(value) for value in column.to_pylist()]
    return list(column.to_pylist())


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value


def _with_valid_text(table: pa.Table, url: str) -> pa.Table:
    """Pass-through columns with every byte that is not UTF-8 replaced, so that they can be read."""
    for index, field in enumerate(table.schema):
        column = table.column(index)
        if _is_valid(column):
            continue
        if not _is_text(field.type):
            raise PromptError(f"The column {field.name!r} of {url} holds text that is not UTF-8.")
        texts = [
            None if value is None else value.decode(errors="replace")
            for value in column.cast(pa.large_binary()).to_pylist()
        ]
        table = table.set_column(index, field.name, pa.chunked_array([pa.array(texts, field.type)]))
    return table


def _is_valid(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


# --- CSV ---------------------------------------------------------------------------------------


def _read_csv(stream: BinaryIO, url: str, match: Match, delimiter: str = ",") -> Iterator[Block]:
    lines = (_text_line(line) for line in _lines(stream))
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise _not_readable(url, "CSV", error) from None
    columns = match(header)
    rows = enumerate(_csv_rows(reader), start=1)
    while block := list(itertools.islice(rows, BLOCK_ROWS)):
        yield _csv_block(block, header, columns)


def _csv_rows(reader: Iterator[list[str]]) -> Iterator[list[str] | csv.Error]:
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield error


def _csv_block(
    rows: Sequence[tuple[int, list[str] | csv.Error]], header: list[str], columns: Columns
) -> Block:
    good: list[list[str]] = []
    numbers: list[int] = []
    bad: list[BadRow] = []
    for number, row in rows:
        if isinstance(row, csv.Error):
            bad.append(BadRow(number, f"the row cannot be read as CSV: {row}", ""))
        elif not row:  # an empty line
            continue
        elif len(row) != len(header):
            detail = f"expected {len(header)} values, found {len(row)}"
            bad.append(BadRow(number, detail, _plain(row[0])))
        else:
            good.append(row)
            numbers.append(number)
    by_name = dict(zip(header, zip(*good, strict=True), strict=True)) if good else {}
    values = {ours: by_name.get(name, ()) for ours, name in columns.found.items()}
    extras = {
        name: pa.array([_plain(text) for text in by_name.get(name, ())], pa.string())
        for name in columns.others(header)
    }
    return Block(numbers, values, _text_table(extras, len(good)), bad)


# --- JSONL -------------------------------------------------------------------------------------


def _read_jsonl(stream: BinaryIO, url: str, match: Match) -> Iterator[Block]:
    seen: dict[str, None] = {}  # rows need not have all keys, so columns may turn up at any time
    rows = enumerate(_lines(stream), start=1)
    while lines := list(itertools.islice(rows, BLOCK_ROWS)):
        numbers, objects, bad = _parse_json_lines(lines)
        if bad and not seen and not objects:
            raise PromptError(f"{url} is not JSONL: {bad[0].detail} (line {bad[0].number}).")
        seen.update(dict.fromkeys(key for item in objects for key in item))
        yield _json_block(numbers, objects, bad, match(list(seen)), list(seen))
    if not seen:
        match([])


def _parse_json_lines(
    lines: Sequence[tuple[int, bytes]],
) -> tuple[list[int], list[dict[str, Any]], list[BadRow]]:
    numbers: list[int] = []
    objects: list[dict[str, Any]] = []
    bad: list[BadRow] = []
    for number, line in lines:
        if not line.strip():
            continue
        try:
            item = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
        except (ValueError, RecursionError) as error:
            detail = f"the line is not JSON: {error}"
        else:
            if isinstance(item, dict):
                numbers.append(number)
                objects.append(item)
                continue
            detail = f"expected an object per line, found {type(item).__name__}"
        bad.append(BadRow(number, detail, _plain(line[:1000].decode(errors="replace"))))
    return numbers, objects, bad


def _json_block(
    numbers: list[int],
    objects: list[dict[str, Any]],
    bad: list[BadRow],
    columns: Columns,
    names: list[str],
) -> Block:
    values = {ours: [item.get(name) for item in objects] for ours, name in columns.found.items()}
    extras = {
        _plain(name): pa.array([_as_text(item.get(name)) for item in objects], pa.string())
        for name in columns.others(names)
    }
    return Block(numbers, values, _text_table(extras, len(objects)), bad)


def _as_text(value: Any) -> str | None:
    if value is None:
        return None
    return _plain(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


# --- lines -------------------------------------------------------------------------------------


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines with their ends; of a line above `MAX_LINE_BYTES` only the beginning."""
    while line := stream.readline(MAX_LINE_BYTES):
        piece = line
        while len(piece) == MAX_LINE_BYTES and not piece.endswith(b"\n"):
            piece = stream.readline(MAX_LINE_BYTES)
        yield line


def _text_line(line: bytes) -> str:
    """A CSV line as text; bytes that are not UTF-8 are kept as lone surrogates."""
    return line.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")


def _plain(text: str) -> str:
    """Text that can be stored: lone surrogates are replaced."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def _text_table(columns: Mapping[str, pa.Array], rows: int) -> pa.Table:
    """A table of some columns that keeps its number of rows even with none."""
    return pa.table({**columns, "": pa.nulls(rows)}).select(list(columns))


def _not_readable(url: str, kind: str, error: Exception) -> PromptError:
    return PromptError(
        f"The prompt table {url} is not readable as {kind}: {str(error).rstrip('.')}."
    )


def _listed(names: Sequence[str], most: int = 30) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (shown or "none") + more


_READERS: Mapping[str, Callable[[BinaryIO, str, Match], Iterator[Block]]] = {
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
    ".csv": _read_csv,
    ".tsv": lambda stream, url, match: _read_csv(stream, url, match, "\t"),
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
}
