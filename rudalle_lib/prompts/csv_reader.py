"""Reader of prompt tables in CSV and TSV, as spreadsheets of any country write them.

A quote that is missing makes CSV swallow the rows that follow. So a value that holds more line ends
than texts have, that never ends, or that is followed by more text, is taken for a missing quote:
the line where it begins is rejected, and the lines after it are read as rows of their own.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import pyarrow as pa

from rudalle_lib.errors import PromptError
from rudalle_lib.escaping import csv_text
from rudalle_lib.prompts import blocks
from rudalle_lib.prompts.blocks import (
    BadRow,
    Block,
    Columns,
    NoRow,
    TableOptions,
    clean_names,
    text_table,
)
from rudalle_lib.prompts.text_streams import MAX_LINE_BYTES, read_lines, storable, warn_once

MAX_ROW_LINES = 100
"""The most lines of one row; a longer one has lost a quote."""

DELIMITERS = (",", ";", "\t", "|")
"""Delimiters that are recognised if none is given."""

_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[\r\n]*')
"""The first line that Excel writes to name the delimiter."""


def read_csv(
    stream: BinaryIO, name: str, options: TableOptions, usual: str = ","
) -> Iterator[Block]:
    """Read a table of values with a delimiter.

    Args:
        stream: UTF-8 with line ends of any kind.
        name: the table, for errors.
        options: how it is read.
        usual: the delimiter of its suffix.

    Raises:
        PromptError: there is no column of prompts.
    """
    lines = _Lines(read_lines(stream))
    form = _read_header(lines, name, options, usual)
    columns = options.match(form.names)
    rows = _rows(lines, form)
    number = 0
    max_rows = blocks.rows_per_block(len(form.names))
    while True:
        block = _Rows()
        for row in rows:
            number += 1
            block.add(number, row, form)
            full = number - block.first + 1 >= max_rows
            if full or lines.bytes_read >= blocks.BLOCK_BYTES:
                break
        lines.bytes_read = 0
        if not block.first:
            return
        yield _block(block, form, columns)


@dataclass(frozen=True, slots=True)
class _Form:
    """How the rows of a table are written.

    Attributes:
        delimiter: between values.
        skip_blanks: whether blanks after a delimiter are no part of the value.
        names: of the columns.
        optional: how many of the last columns have no name in the table, so rows may lack them.
    """

    delimiter: str
    skip_blanks: bool
    names: list[str]
    optional: int

    def reader(self, lines: Iterator[str], strict: bool = False) -> Iterator[list[str]]:
        return csv.reader(
            lines, delimiter=self.delimiter, skipinitialspace=self.skip_blanks, strict=strict
        )


class _Lines:
    """The lines of a table as text; lines of a row that turns out to be none are read again."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        self._again: deque[str] = deque()
        self.row: list[str] = []
        self.first_line = 1
        self.too_long = self.ended = False
        self.bytes_read = 0
        self._row_bytes = 0

    def begin_row(self) -> None:
        """Forget the lines of the row before."""
        self.first_line += len(self.row)
        self.row = []
        self._row_bytes = 0

    def read_again(self) -> None:
        """Read all lines of the row but the first again."""
        self._again.extendleft(reversed(self.row[1:]))
        del self.row[1:]
        self.too_long = self.ended = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.row and (len(self.row) >= MAX_ROW_LINES or self._row_bytes >= MAX_LINE_BYTES):
            self.too_long = True
            raise StopIteration
        if self._again:
            line = self._again.popleft()
        else:
            try:
                line = next(self._lines).decode(errors="surrogateescape")
            except StopIteration:
                self.ended = True
                raise
            self.bytes_read += len(line)
        self.row.append(line)
        self._row_bytes += len(line)
        return line


# --- header --------------------------------------------------------------------------------------


def _read_header(lines: _Lines, name: str, options: TableOptions, usual: str) -> _Form:
    given = options.delimiter
    header = _first_row(lines, name, given or usual)
    if given is None and (separator := _SEPARATOR_LINE.fullmatch("".join(lines.row))):
        given = separator[1]
        header = _first_row(lines, name, given)
    text = list(lines.row)
    chosen = given or usual
    for delimiter in () if given else (usual, *DELIMITERS):
        found = next(csv.reader(text, delimiter=delimiter), [])
        if not set(options.text_columns).isdisjoint(map(blocks.plain_name, found)):
            header, chosen = found, delimiter
            break
    if given is None and chosen != usual:
        shown = "tabs" if chosen == "\t" else repr(chosen)
        warn_once(
            f"{name} is read with {shown} between its values; set prompts.delimiter if that is "
            "wrong, or to be sure."
        )
    skip_blanks = any(column.startswith(" ") for column in header[1:])
    if skip_blanks:  # then quotes may follow a blank
        header = next(csv.reader(text, delimiter=chosen, skipinitialspace=True), [])
    plain = clean_names(header, f"The prompt table {name}")
    optional = 0
    while optional < len(header) and not blocks.plain_name(header[-1 - optional]):
        optional += 1
    return _Form(chosen, skip_blanks, plain, optional)


def _first_row(lines: _Lines, name: str, delimiter: str) -> list[str]:
    """The first row that is not empty; none if the table is empty."""
    reader = csv.reader(lines, delimiter=delimiter)
    while True:
        lines.begin_row()
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise PromptError(
                f"The prompt table {name} is not readable as CSV: {_sentence(error)}."
            ) from None
        if lines.too_long:
            raise PromptError(
                f"The prompt table {name} is not readable as CSV: a quote in line "
                f"{lines.first_line}, its header, is not closed within {MAX_ROW_LINES} lines."
            )
        if row is None or row:
            return row or []


# --- rows ----------------------------------------------------------------------------------------


def _rows(lines: _Lines, form: _Form) -> Iterator[list[str] | NoRow]:
    """The rows after the header; an empty line is an empty row."""
    reader = form.reader(lines)
    width = len(form.names)
    problem: str | None
    while True:
        lines.begin_row()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = _sentence(error)
            if len(lines.row) > 1:
                problem = f"a quote in it is not closed ({problem})"
        else:
            if len(lines.row) == 1 and not lines.ended and '\\"' not in lines.row[0]:
                yield row
                continue
            problem = _missing_quote(lines, form)
            if not problem and len(row) != width and len(lines.row) > 1:
                last = lines.first_line + len(lines.row) - 1
                where = f"it consists of the lines {lines.first_line} to {last}"
                detail = f"{_wrong_width(form, row)}; {where}: is a quote missing?"
                yield NoRow(detail, _shown(lines.row[0]))
                continue
            if not problem:
                yield row
                continue
        line, text = lines.first_line, _shown(lines.row[0])
        lines.read_again()
        reader = form.reader(lines)
        yield NoRow(f"line {line} cannot be read as CSV: {problem}", text)


def _missing_quote(lines: _Lines, form: _Form) -> str | None:
    """Why the lines of a row are taken for one that has lost a quote; None if they are fine."""
    if lines.too_long:
        return f"a quote in it is not closed within {MAX_ROW_LINES} lines"
    if lines.ended:
        return "a quote in it is never closed"
    try:
        list(form.reader(iter(lines.row), strict=True))
    except csv.Error:
        if len(lines.row) == 1:
            return "quotes in it are escaped by backslashes; write two quotes instead"
        return "a quote in it is not closed before the next quote begins"
    return None


def _sentence(error: csv.Error) -> str:
    text = str(error)
    if text.startswith("new-line character seen"):
        return "it holds a carriage return outside quotes"
    if text.startswith("field larger"):
        return f"a value has more than {csv.field_size_limit():,} characters"
    return text


def _shown(line: str) -> str:
    return storable(line[:1000].rstrip("\r\n"))


def _wrong_width(form: _Form, row: Sequence[str]) -> str:
    return f"expected {len(form.names)} values, found {len(row)}"


@dataclass(slots=True)
class _Rows:
    """The rows of a block; `first` is the number of the first one, or 0."""

    good: list[list[str]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    first: int = 0

    def add(self, number: int, row: list[str] | NoRow, form: _Form) -> None:
        self.first = self.first or number
        if isinstance(row, NoRow):
            self.bad.append(BadRow(number, row.detail, row.text))
            return
        width = len(form.names)
        if len(row) != width:
            if not row:  # an empty line
                return
            row = _fitted(row, width, form.optional)
            if len(row) != width:
                text = storable(form.delimiter.join(row)[:1000])
                self.bad.append(BadRow(number, _wrong_width(form, row), text))
                return
        self.good.append(row)
        self.numbers.append(number)


def _fitted(row: list[str], width: int, optional: int) -> list[str]:
    """A row without empty values after its last column, and with the columns that may lack."""
    while len(row) > width and not row[-1].strip():
        row = row[:-1]
    return row + [""] * (width - len(row)) if width - optional <= len(row) < width else row


def _block(rows: _Rows, form: _Form, columns: Columns) -> Block:
    cells = zip(*rows.good, strict=True) if rows.good else [()] * len(form.names)
    # Our own exports escape what a spreadsheet would run.
    texts_of = ([csv_text(cell) for cell in column] for column in cells)
    values_of = dict(zip(form.names, texts_of, strict=True))
    nameless = form.names[len(form.names) - form.optional :]
    extras: dict[str, pa.Array] = {}
    for name in columns.others(form.names):
        texts: Sequence[str] = values_of.get(name, ())
        if name in nameless and not any(texts):
            continue
        extras[name] = pa.array([storable(text) for text in texts], pa.string())
    values = {ours: values_of.get(name, ()) for ours, name in columns.names.items()}
    return Block(rows.numbers, values, text_table(extras, len(rows.good)), rows.bad)
