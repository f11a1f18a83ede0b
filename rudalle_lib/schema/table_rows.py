"""Rows of prompt tables, as plans, rejects and errors name them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

TABLES_SHOWN = 3
"""Tables that `describe_rows` names."""


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of a prompt table.

    Attributes:
        table: path or public URL of the table's file.
        number: of the row in this file, from 1; the line with the names of columns does not count,
            empty lines do.
    """

    table: str
    number: int

    def __str__(self) -> str:
        """The row in words: "row 5 of prompts.csv"."""
        return f"row {self.number} of {self.table}"


def describe_rows(rows: Iterable[TableRow]) -> str:
    """Rows in words, such as "rows 5 to 12 of one.csv and row 1 of two.csv"; empty if none."""
    ends: dict[str, tuple[int, int]] = {}
    for row in rows:
        first, last = ends.get(row.table, (row.number, row.number))
        ends[row.table] = (min(first, row.number), max(last, row.number))
    parts = [_range(table, *numbers) for table, numbers in ends.items()]
    if len(parts) > TABLES_SHOWN:
        parts[TABLES_SHOWN:] = [f"rows of {len(parts) - TABLES_SHOWN} more files"]
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def _range(table: str, first: int, last: int) -> str:
    if first == last:
        return str(TableRow(table, first))
    return f"rows {first} to {last} of {table}"
