"""Reader of prompt tables in JSON: an object per line, or an array of objects.

Values of pass-through columns become text, so that every shard has the same types; values that are
not text become JSON.
"""

from __future__ import annotations

import codecs
import gc
import io
import json
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from rudalle_lib.errors import PromptError
from rudalle_lib.prompts import blocks, text_streams
from rudalle_lib.prompts.blocks import (
    BadRow,
    Block,
    NoRow,
    TableOptions,
    free_column,
    name_problem,
    plain_name,
    text_table,
)
from rudalle_lib.prompts.text_streams import CHUNK, read_lines, storable

MAX_BRACKETS = 50_000
"""The most lists and objects of a row; empty ones need thirty times their size in memory."""

MAX_DEPTH = 100
"""The deepest nesting of a row; the depth that Python can parse depends on who calls it."""

FEW_KEYS = 100
"""So many keys are looked up in every row."""

RECORDS_KEY = "data"
"""The key of an object that holds the array of rows."""

_TOO_DEEP = f"it is nested deeper than {MAX_DEPTH} levels"
_TOO_MANY = f"it has more than {MAX_BRACKETS:,} lists and objects"
_SHAPE = f'expected an array of objects, or an object with an array called "{RECORDS_KEY}"'


def read_jsonl(stream: BinaryIO, name: str, options: TableOptions) -> Iterator[Block]:
    """Read a table with an object per line, as UTF-8.

    Raises:
        PromptError: its first lines are not JSON, or there is no column of prompts.
    """
    return _read(_from_lines(stream), name, options, "JSONL", "line")


def read_json(stream: BinaryIO, name: str, options: TableOptions) -> Iterator[Block]:
    """Read a table that is an array of objects, an object with such an array, or JSONL."""
    first = stream.peek(CHUNK).lstrip() if isinstance(stream, io.BufferedReader) else b""
    if first.startswith(b"{") and not _holds_array(first):
        return _read(_from_lines(stream), name, options, "JSON", "line")
    return _read(_Elements(stream, name).rows(), name, options, "JSON", "record")


def _holds_array(head: bytes) -> bool:
    """Whether a text that begins with `{` is one object around all rows, and not JSONL."""
    line, _, rest = head.partition(b"\n")
    try:
        item = json.loads(line)
    except (ValueError, RecursionError):
        return True  # the object goes on in the next lines
    if rest.strip():
        return False
    columns = bool(item) and all(isinstance(value, dict) for value in item.values())
    return columns or isinstance(item.get(RECORDS_KEY), list)


# --- blocks --------------------------------------------------------------------------------------


class _Row(NamedTuple):
    """A value of the table; `size` is about its size in the file."""

    number: int
    value: Any
    size: int


class _Repeated(dict[str, Any]):
    """An object in which a key occurs twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    item = dict(pairs)
    return item if len(item) == len(pairs) else _Repeated(item)


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _read(
    rows: Iterator[_Row], name: str, options: TableOptions, form: str, unit: str
) -> Iterator[Block]:
    names = _Names()
    while True:
        block = _Rows()
        size = 0
        for row in rows:
            block.add(row, names)
            size += row.size
            full = row.number - block.first + 1 >= blocks.rows_per_block(len(names.all))
            if full or size >= blocks.BLOCK_BYTES:
                break
        if not block.first:
            break
        if block.bad and not names.all and not block.objects:
            first = block.bad[0]
            raise PromptError(f"{name} is not {form}: {first.detail} ({unit} {first.number}).")
        yield _block(block, names, options)
    if not names.all:
        options.match([])


class _Names:
    """The names of columns so far. Rows may lack keys, so a column can appear in any block."""

    def __init__(self) -> None:
        self.all: dict[str, str] = {}  # by the key in the table
        self._taken: set[str] = set()
        self._made_up: set[str] = set()  # names of keys without one
        self._spellings: set[str] = set()  # keys with blanks around the name of another one

    @property
    def columns(self) -> list[str]:
        """The names in order of appearance."""
        return list(dict.fromkeys(self.all.values()))

    def problem(self, item: dict[str, Any]) -> str | None:
        """Why an object is no row; None if it is one, whose names have been added."""
        if not self.all.keys() >= item.keys():
            why = self._add([key for key in item if key not in self.all])
            if why:
                return why
        if self._spellings and not self._spellings.isdisjoint(item):
            names = [self.all[key] for key in item]
            if len(set(names)) < len(names):
                return "two of its keys differ only in the blanks around them"
        return None

    def _add(self, new: list[str]) -> str | None:
        for key in new:
            if why := name_problem(plain_name(key)):
                return f"a key {why}: {storable(key[:40])!r}"
        if len(self.all) + len(new) > blocks.MAX_COLUMNS:
            return (
                f"the table has more than {blocks.MAX_COLUMNS:,} different keys with "
                f"{new[-1][:40]!r}; put what belongs together into one value"
            )
        names = [plain_name(key) for key in new]
        before = set(self.all.values())
        self._taken.update(names)
        for key, name in zip(new, names, strict=True):
            if not name or name in self._made_up:
                name = free_column(len(self.all) + 1, self._taken)
                self._made_up.add(name)
            elif name in before:
                self._spellings.update(k for k, n in self.all.items() if n == name)
                self._spellings.add(key)
            before.add(name)
            self.all[key] = name
        return None


@dataclass(slots=True)
class _Rows:
    """The rows of a block; `first` is the number of the first one, or 0."""

    numbers: list[int] = field(default_factory=list)
    objects: list[dict[str, Any]] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    first: int = 0

    def add(self, row: _Row, names: _Names) -> None:
        self.first = self.first or row.number
        item = row.value
        if isinstance(item, NoRow):
            self.bad.append(BadRow(row.number, item.detail, item.text))
            return
        problem: str | None
        if not isinstance(item, dict):
            problem = f"expected an object per row, found {type(item).__name__}"
        elif isinstance(item, _Repeated):
            problem = "a key of the row occurs twice"
        else:
            problem = names.problem(item)
        if problem:
            self.bad.append(BadRow(row.number, problem, storable(_start_of(item))))
            return
        for key, value in item.items():  # as text they need less memory
            if value.__class__ in _CONTAINERS:
                item[key] = _Json(json.dumps(value, ensure_ascii=False))
        self.numbers.append(row.number)
        self.objects.append(item)


_CONTAINERS = frozenset((dict, list, _Repeated))


class _Json(str):
    """A list or an object as JSON."""

    __slots__ = ()


def _start_of(item: Any) -> str:
    prompt = item.get("prompt") if isinstance(item, dict) else None
    return prompt[:1000] if isinstance(prompt, str) else reprlib.repr(item)


def _block(rows: _Rows, names: _Names, options: TableOptions) -> Block:
    columns = options.match(names.columns)
    cells = _columns(rows.objects, names.all)
    values = {ours: list(map(_as_value, cells[name])) for ours, name in columns.names.items()}
    extras = {
        name: pa.array(list(map(_as_text, cells[name])), pa.string())
        for name in columns.others(list(cells))
    }
    return Block(rows.numbers, values, text_table(extras, len(rows.objects)), rows.bad)


def _columns(objects: list[dict[str, Any]], names: Mapping[str, str]) -> dict[str, list[Any]]:
    """The values of each column; None where a row does not have it."""
    if len(set(names.values())) == len(names) < FEW_KEYS:
        return {name: [item.get(key) for item in objects] for key, name in names.items()}
    columns: dict[str, list[Any]] = {name: [None] * len(objects) for name in names.values()}
    for position, item in enumerate(objects):  # most rows lack most of so many keys
        for key, value in item.items():
            if value is not None:
                columns[names[key]][position] = value
    return columns


def _as_value(value: Any) -> Any:
    return json.loads(value) if isinstance(value, _Json) else value


def _as_text(value: Any) -> str | None:
    if value is None:
        return None
    return storable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


# --- rows ----------------------------------------------------------------------------------------


def _from_lines(stream: BinaryIO) -> Iterator[_Row]:
    for number, line in enumerate(read_lines(stream), start=1):
        if line.strip():
            yield _Row(number, _parse(line), len(line))


def _parse(line: bytes) -> Any:
    if len(line) >= (most := text_streams.MAX_LINE_BYTES):
        return NoRow(f"the line has more than {most:,} bytes", _beginning(line))
    brackets = line.count(b"[") + line.count(b"{")
    if brackets > MAX_BRACKETS:
        return NoRow(_TOO_MANY, _beginning(line))
    try:
        item = _DECODER.decode(line.removeprefix(b"\xef\xbb\xbf").decode())
    except (ValueError, RecursionError) as error:
        return NoRow(f"the line is not JSON: {error}", _beginning(line))
    if brackets > MAX_DEPTH and _is_too_deep(item):
        return NoRow(_TOO_DEEP, _beginning(line))
    return item


def _beginning(line: bytes) -> str:
    return storable(line[:1000].decode(errors="replace"))


def _is_too_deep(value: Any) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
    return bool(level)


class _Elements:
    """The elements of the array in a JSON text, parsed one by one."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream, self._name = stream, name
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text = ""
        self._place = 0
        self._ended = False

    def rows(self) -> Iterator[_Row]:
        """The elements, numbered from 1."""
        if self._next() == "{":
            self._find_array()
        elif self._next() != "[":
            raise self._error(_SHAPE)
        self._place += 1
        number = 0
        while self._next() != "]":
            if number:
                self._expect(",", number)
            number += 1
            value, size = self._value(f"record {number}")
            yield _Row(number, value, size)

    def _find_array(self) -> None:
        """Go to the array of an object."""
        self._place += 1
        while self._next() == '"':
            key, _ = self._value("a key")
            self._expect(":")
            if key == RECORDS_KEY and self._next() == "[":
                return
            self._value(f"the value of {str(key)[:40]!r}")
            if self._next() != ",":
                break
            self._place += 1
        raise self._error(_SHAPE)

    def _expect(self, letter: str, number: int = 0) -> None:
        if self._next() != letter:
            where = f" after record {number}" if number else ""
            found = repr(self._next()) if self._next() else "the end of the file"
            raise self._error(f"expected {letter!r}{where}, found {found}")
        self._place += 1

    def _next(self) -> str:
        """The next letter that is not blank; none at the end."""
        while True:
            while self._place < len(self._text):
                if self._text[self._place] not in " \t\r\n":
                    return self._text[self._place]
                self._place += 1
            if self._ended:
                return ""
            self._read(CHUNK)

    def _value(self, what: str) -> tuple[Any, int]:
        """The next value, and its length."""
        self._next()
        size = CHUNK
        while True:
            try:
                value, end = self._decode()
            except RecursionError:
                raise self._error(f"{what} is nested too deep") from None
            except ValueError as error:
                size_now = len(self._text) - self._place
                if size_now > text_streams.MAX_LINE_BYTES:
                    most = text_streams.MAX_LINE_BYTES
                    raise self._error(
                        f"{what} is not JSON, or has more than {most:,} bytes"
                    ) from None
                if self._ended:
                    raise self._error(f"{what} is not JSON: {error}") from None
            else:
                if end < len(self._text) or self._ended:  # else a number may go on
                    start, self._place = self._place, end
                    brackets = sum(self._text.count(letter, start, end) for letter in "[{")
                    problem = _TOO_MANY if brackets > MAX_BRACKETS else ""
                    if not problem and brackets > MAX_DEPTH and _is_too_deep(value):
                        problem = _TOO_DEEP
                    if problem:
                        value = NoRow(problem, storable(self._text[start : start + 1000]))
                    return value, end - start
            self._read(size)
            size *= 2

    def _decode(self) -> tuple[Any, int]:
        collecting = gc.isenabled()
        gc.disable()  # it takes most of the time of parsing many small lists
        try:
            return _DECODER.raw_decode(self._text, self._place)
        finally:
            if collecting:
                gc.enable()

    def _read(self, size: int) -> None:
        content = self._stream.read(size)
        self._ended = not content
        self._text = self._text[self._place :] + self._decoder.decode(content, self._ended)
        self._place = 0

    def _error(self, problem: str) -> PromptError:
        return PromptError(f"The prompt table {self._name} is not readable as JSON: {problem}.")
