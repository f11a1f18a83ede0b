"""Rows of prompt tables in words."""

from __future__ import annotations

import pytest

from rudalle_lib.schema.records import Prompt, ShardSpec
from rudalle_lib.schema.table_rows import TableRow, describe_rows


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], ""),
        ([("a.csv", 5)], "row 5 of a.csv"),
        ([("a.csv", 7), ("a.csv", 5), ("a.csv", 9)], "rows 5 to 9 of a.csv"),
        ([("a.csv", 5), ("a.csv", 6), ("b.csv", 1)], "rows 5 to 6 of a.csv and row 1 of b.csv"),
        (
            [(f"{n}.csv", 1) for n in range(5)],
            "row 1 of 0.csv, row 1 of 1.csv, row 1 of 2.csv and rows of 2 more files",
        ),
    ],
)
def test_rows_are_described_by_file(rows: list[tuple[str, int]], expected: str) -> None:
    assert describe_rows(TableRow(*row) for row in rows) == expected


def test_prompts_and_shards_are_shown_with_their_rows_if_these_are_known() -> None:
    row = TableRow("a.csv", 5)
    assert str(Prompt("red", "a")) == "red"
    assert str(Prompt("red", "a", row=row)) == "red (row 5 of a.csv)"
    assert Prompt("red", "a", row=row) == Prompt("red", "a")  # the same prompt, wherever it is
    assert str(ShardSpec(3, "plan", 1)) == "shard 00003"
    assert str(ShardSpec(3, "plan", 1, source=str(row))) == "shard 00003 (row 5 of a.csv)"
