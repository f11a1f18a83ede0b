"""Blocks of rows as the readers of prompt tables return them, and the names of their columns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from rudalle_lib.errors import PromptError
from rudalle_lib.prompts.parquet_child import MEMORY_BYTES

BLOCK_ROWS = 8192
"""The most rows of a block."""

BLOCK_BYTES = 8 * 2**20
"""The size of the values that a block of several rows should not exceed."""

BLOCK_CELLS = 2**20
"""The most values of a block, also empty ones."""

MAX_COLUMNS = 2048
"""The most columns of a table."""

MAX_NAME = 256
"""The longest name of a column, in characters."""

INVISIBLE_ENDS = "\ufeff\u200b\u2060"
"""Invisible characters that are removed from the ends of names, like white space."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be parsed.

    Attributes:
        number: its number in the table, counted from 1.
        detail: what is wrong.
        text: the beginning of the row.
    """

    number: int
    detail: str
    text: str


class NoRow(NamedTuple):
    """What a `BadRow` says, before its number is known."""

    detail: str
    text: str


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of a table.

    Attributes:
        numbers: row numbers in the table, counted from 1.
        values: the values of each known column that the table has, by our name.
        extras: all other columns, under their own names.
        bad: rows among these that could not be parsed.
        part: path or public URL of their file, if the table consists of several.
        rows_before: rows of the table in the files before it.
    """

    numbers: Sequence[int]
    values: Mapping[str, Sequence[Any]]
    extras: pa.Table
    bad: Sequence[BadRow] = ()
    part: str | None = None
    rows_before: int = 0


@dataclass(frozen=True, slots=True)
class Columns:
    """The known columns of a table.

    Attributes:
        names: the table's name of each known column that it has, by our name.
    """

    names: Mapping[str, str]

    @classmethod
    def match(
        cls, names: Sequence[str], known: Sequence[str], mapping: Mapping[str, str], table: str
    ) -> Columns:
        """Find the known columns in a table.

        Args:
            names: the columns of the table, as `clean_names` returns them.
            known: our names of the columns; only the first one is required.
            mapping: the table's name by ours, where they differ.
            table: the name of the table, for error messages.

        Raises:
            PromptError: the required column or a mapped one is missing, or there are too many.
        """
        if len(names) > MAX_COLUMNS:
            raise PromptError(
                f"{table} has {len(names):,} columns, expected at most {MAX_COLUMNS:,}; put what "
                "belongs together into one column, for example as JSON."
            )
        mapping = {ours: plain_name(theirs) for ours, theirs in mapping.items()}
        existing = set(names)
        for ours in known:
            theirs = mapping.get(ours, ours)
            if theirs not in existing and (ours in mapping or ours == known[0]):
                raise PromptError(
                    f"{table} has no column {theirs!r}"
                    + (f" (for {ours})" if theirs != ours else "")
                    + f"; its columns are {_list_names(names)}. Name the right one as "
                    f"prompts.columns.{ours}."
                )
        return cls({n: mapping.get(n, n) for n in known if mapping.get(n, n) in existing})

    def others(self, names: Sequence[str]) -> list[str]:
        """The names of the pass-through columns among the columns of the table."""
        known = set(self.names.values())
        return [name for name in names if name not in known]


Match = Callable[[Sequence[str]], Columns]
"""Finds the known columns among the names of a table's columns."""


@dataclass(frozen=True, slots=True)
class TableOptions:
    """How a table is read.

    Attributes:
        match: finds the known columns.
        text_columns: names by which the column of texts is recognised in the header of a CSV file.
        delimiter: between the values of CSV; None guesses it.
        encoding: of CSV and JSON; None guesses it.
        limit: rows that are needed; None for all.
        memory_bytes: most memory of the process that decodes Parquet.
    """

    match: Match
    text_columns: Collection[str] = ("prompt",)
    delimiter: str | None = None
    encoding: str | None = None
    limit: int | None = None
    memory_bytes: int = MEMORY_BYTES


# --- names of columns ----------------------------------------------------------------------------


def clean_names(names: Iterable[str], table: str) -> list[str]:
    """The names of columns without white space around them; `column_<n>` if there is no name.

    Args:
        names: the names in the table.
        table: the name of the table, for error messages.

    Raises:
        PromptError: two columns have the same name, or a name cannot be used.
    """
    plain = [plain_name(name) for name in names]
    for name in plain:
        if problem := name_problem(name):
            shown = name[:40].encode(errors="replace").decode()
            raise PromptError(f"{table} has a column whose name {problem}: {shown!r}.")
    repeated = [name for name, count in Counter(filter(None, plain)).items() if count > 1]
    if repeated:
        raise PromptError(f"{table} has two columns named {repeated[0]!r}; names must be unique.")
    taken = set(plain)
    return [name or free_column(number, taken) for number, name in enumerate(plain, start=1)]


def free_column(number: int, taken: set[str]) -> str:
    """A name for a column that has none, which is added to those taken."""
    name = f"column_{number}"
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def name_problem(name: str) -> str | None:
    """Why a name cannot be used, as the second half of a sentence; None if it can."""
    if len(name) > MAX_NAME:
        return f"has more than {MAX_NAME} characters"
    if not name.isascii() and _LONE_SURROGATE.search(name):
        return "is not valid UTF-8 text (see prompts.encoding)"
    return None


def plain_name(name: str) -> str:
    """A name without white space and invisible characters around it."""
    return name.strip().strip(INVISIBLE_ENDS).strip()


def rows_per_block(columns: int) -> int:
    """The most rows of a block with that many columns."""
    return max(1, min(BLOCK_ROWS, BLOCK_CELLS // max(columns, 1)))


def text_table(columns: Mapping[str, pa.Array], rows: int) -> pa.Table:
    """A table of these columns, which keeps its number of rows even without columns."""
    arrays = [*columns.values(), pa.nulls(rows)]
    names = [str(number) for number in range(len(arrays))]
    table = pa.Table.from_arrays(arrays, names).select(names[:-1])
    return table.rename_columns(list(columns))


def _list_names(names: Sequence[str], max_names: int = 30) -> str:
    listed = ", ".join(repr(name) for name in names[:max_names])
    more = f" and {len(names) - max_names} more" if len(names) > max_names else ""
    return (listed or "none") + more


# --- rows ----------------------------------------------------------------------------------------


def first_rows(blocks: Iterator[Block], limit: int | None) -> Iterator[Block]:
    """The blocks with the first `limit` rows, including unreadable ones."""
    left = limit
    for block in blocks:
        numbers = sorted([*block.numbers, *(bad.number for bad in block.bad)])
        if left is None or len(numbers) < left:
            yield block
            left = None if left is None else left - len(numbers)
            continue
        if left > 0:
            yield _up_to(block, numbers[left - 1])
        return


def _up_to(block: Block, last: int) -> Block:
    count = sum(number <= last for number in block.numbers)
    return Block(
        numbers=block.numbers[:count],
        values={name: values[:count] for name, values in block.values.items()},
        extras=block.extras.slice(0, count),
        bad=[bad for bad in block.bad if bad.number <= last],
        part=block.part,
        rows_before=block.rows_before,
    )
