"""Prompt tables that consist of several files: a folder, or all files that match a pattern.

Spark, Dask and Hugging Face write tables as folders of part files. Files and folders whose names
begin with `_` or `.` are not part of the table. A folder called `lang=ru` gives all rows below it
a column `lang`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from rudalle_lib.errors import PromptError
from rudalle_lib.prompts.blocks import Block, Columns, Match, TableOptions
from rudalle_lib.prompts.budgets import Budget
from rudalle_lib.prompts.table_readers import format_of, read_blocks
from rudalle_lib.storage import bounds
from rudalle_lib.storage.errors import public_url, translate_errors
from rudalle_lib.storage.filesystems import connect, is_local, open_input
from rudalle_lib.storage.reading import TABLE, Reading, call_within

MAX_PARTS = 10_000
"""The most part files of a table."""

MAX_FILES = 100_000
"""The most files that are listed to find them."""

WILDCARDS = "*?["
"""Characters that make a path a pattern, unless there is a file of that name."""

NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
"""How Spark writes a missing value into the name of a folder."""


@dataclass(frozen=True, slots=True)
class Part:
    """A file of a prompt table.

    Attributes:
        url: its path or URL.
        name: its path relative to the table; empty if it is the whole table.
        constants: the columns that its folders give to all of its rows.
    """

    url: str
    name: str = ""
    constants: Mapping[str, str | None] = field(default_factory=dict)


def read_parts(
    url: str, name: str, options: TableOptions, rules: Reading = TABLE
) -> Iterator[Block]:
    """Read a table, whose row numbers go on from file to file.

    Args:
        url: path or URL of a file, a folder or a pattern.
        name: the table, for errors.
        options: how it is read.
        rules: for reading the files.

    Raises:
        PromptError: it cannot be parsed, or its files do not belong together.
        StorageError: it cannot be read.
    """
    parts = find_parts(url, name, rules)
    budget = Budget(f"The prompt table {name}")
    types = _Types(name)
    offset = 0
    left = options.limit
    for part in parts:
        last = 0
        here = public_url(part.url)
        with (
            translate_errors("read the prompt table", part.url),
            open_input(part.url, "prompt table", rules) as stream,
        ):
            if len(parts) > 1:
                if not stream.read(1):  # Spark writes empty files for empty partitions
                    continue
                stream.seek(0)
            match = _PartMatch(options.match, part)
            reading = replace(options, match=match, limit=left)
            for block in read_blocks(stream, part.url, here, reading, budget):
                last = max([last, *block.numbers[-1:], *(bad.number for bad in block.bad[-1:])])
                if part.name:
                    block = match.with_constants(_in_table(block, here, offset))
                    types.check(block.extras.schema, part.name)
                yield block
        offset += last
        left = None if left is None else max(1, left - last)


def find_parts(url: str, name: str, rules: Reading = TABLE) -> Sequence[Part]:
    """The files of a table in order: one without a name if it is a single file.

    Raises:
        PromptError: a folder or pattern has no tables, too many, or tables of several formats.
        StorageError: it cannot be listed.
    """
    if url.startswith(("http://", "https://")):  # servers have no lists of their files
        return [Part(url)]
    if "://" in url and any(w in url.partition("://")[2].partition("/")[0] for w in WILDCARDS):
        raise PromptError(f"{name} has a wildcard before its first folder; name the bucket.")
    with translate_errors("read the prompt table", url):
        file_system, path = connect(url, bound=bounds.INPUTS if rules.bounded else None)
        if is_local(file_system):
            is_pattern, found = _find(file_system, path)
        else:
            is_pattern, found = call_within(rules.total_seconds, _find, file_system, path)
        if found is None:
            return [Part(url)]
        base = _fixed_part(url) if is_pattern else url.rstrip("/") + "/"
        root = "" if base == "/" else connect(base or ".")[1]
    files = [file.removeprefix(root).lstrip("/") for file in found]
    tables = sorted(file for file in files if format_of(file) is not None)
    _check(tables, files, name)
    return [Part(base + file, file, _constants(file)) for file in tables]


def _find(file_system: Any, path: str) -> tuple[bool, list[str] | None]:
    """Whether a path is a pattern, and the files of a folder or pattern; None for a single file."""
    try:
        info = file_system.info(path)
    except FileNotFoundError:
        if any(letter in path for letter in WILDCARDS):
            return True, list(_matching(file_system, path))
        return False, None
    return False, list(_below(file_system, path)) if info["type"] == "directory" else None


def _fixed_part(pattern: str) -> str:
    """The folder that a pattern begins with, with a slash at its end."""
    first = min(place for letter in WILDCARDS if (place := pattern.find(letter)) >= 0)
    folder, slash, _ = pattern[:first].rpartition("/")
    return folder + slash


def _matching(file_system: Any, pattern: str) -> Iterator[str]:
    hidden = PurePosixPath(pattern).name.startswith(("_", "."))
    for path, info in sorted(file_system.glob(pattern, detail=True).items()):
        if not hidden and PurePosixPath(path).name.startswith(("_", ".")):
            continue
        if info["type"] == "directory":
            yield from _below(file_system, path)
        else:
            yield path


def _below(file_system: Any, folder: str) -> Iterator[str]:
    """The files of a folder and its subfolders, at most one more than `MAX_FILES`."""
    count = 0
    for where, folders, files in file_system.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(("_", ".")) or
                            name == "_delta_log")  # fmt: skip
        for name in sorted(files):
            if name and (not name.startswith(("_", ".")) or "_delta_log" in where):
                yield f"{where}/{name}"
                count += 1
        if count > MAX_FILES:
            return


def _check(tables: Sequence[str], files: Sequence[str], name: str) -> None:
    if any("_delta_log/" in file for file in files):
        raise PromptError(
            f"{name} is a Delta table, whose files may hold rows that were deleted; export it as "
            "Parquet."
        )
    if len(files) > MAX_FILES or len(tables) > MAX_PARTS:
        raise PromptError(
            f"{name} has more than {MAX_PARTS if len(tables) > MAX_PARTS else MAX_FILES:,} files; "
            "expected a folder with the files of one prompt table. Write it with larger ones."
        )
    if not tables:
        others = f"none of its {len(files):,} files is one" if files else "it has no files"
        raise PromptError(
            f"{name} has no prompt table: expected files such as part-00000.parquet; {others}."
        )
    formats = {found[0] for file in tables if (found := format_of(file)) is not None}
    if len(formats) > 1:
        raise PromptError(
            f"{name} has tables of several formats, {', '.join(sorted(formats))}; name those that "
            f"are meant, for example {name.rstrip('/')}/*{min(formats)}."
        )


def _constants(file: str) -> dict[str, str | None]:
    pairs = (folder.partition("=") for folder in PurePosixPath(file).parent.parts)
    values = {unquote(key): unquote(value) for key, equals, value in pairs if key and equals}
    return {key: None if value == NO_VALUE else value for key, value in values.items()}


# --- rows ----------------------------------------------------------------------------------------


def _in_table(block: Block, part: str, offset: int) -> Block:
    """A block of a part, a path or public URL, as one of the whole table."""
    return replace(
        block,
        numbers=[number + offset for number in block.numbers],
        bad=[replace(bad, number=bad.number + offset) for bad in block.bad],
        part=part,
        rows_before=offset,
    )


class _PartMatch:
    """Finds the known columns of a part among those of its file and its constants."""

    def __init__(self, match: Match, part: Part) -> None:
        self._match = match
        self._name = part.name
        self._constants = part.constants
        self._known: dict[str, str] = {}  # our names of constants
        self._others: list[str] = []

    def __call__(self, names: Sequence[str]) -> Columns:
        """The known columns of the file."""
        added = [name for name in self._constants if name not in names]
        try:
            found = self._match([*names, *added]).names
        except PromptError as error:
            raise PromptError(f"{self._name}: {error}" if self._name else str(error)) from None
        self._known = {ours: theirs for ours, theirs in found.items() if theirs in added}
        self._others = [name for name in added if name not in self._known.values()]
        return Columns({o: theirs for o, theirs in found.items() if theirs not in added})

    def with_constants(self, block: Block) -> Block:
        """The block with the constants as columns."""
        count, columns = (
            len(block.numbers),
            dict(zip(block.extras.column_names, block.extras.columns, strict=True)),
        )
        for name in self._others:
            columns[name] = pa.array([self._constants[name]] * count, pa.string())
        known = {ours: [self._constants[name]] * count for ours, name in self._known.items()}
        extras = pa.table(columns) if self._others else block.extras
        return replace(block, values={**block.values, **known}, extras=extras)


class _Types:
    """The types of pass-through columns so far, which must fit together."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._fields: dict[str, tuple[pa.Field, str]] = {}

    def check(self, schema: pa.Schema, part: str) -> None:
        """Compare the columns of a part with those before.

        Raises:
            PromptError: a column has another type.
        """
        for column in schema:
            before, where = self._fields.get(column.name, (column, part))
            try:
                both = [pa.schema([before]), pa.schema([column])]
                joined = pa.unify_schemas(both, promote_options="permissive").field(0)
            except pa.ArrowException:
                raise PromptError(
                    f"The column {column.name!r} holds {column.type} in {part} of {self._name}, "
                    f"but {before.type} in {where}; write all files with the same types."
                ) from None
            self._fields[column.name] = (joined, where)
