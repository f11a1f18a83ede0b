"""Names of columns, the columns that we know, and the first rows of a table in blocks."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest

from rudalle_lib.errors import PromptError
from rudalle_lib.prompts.blocks import (
    BLOCK_CELLS,
    BLOCK_ROWS,
    MAX_COLUMNS,
    MAX_NAME,
    BadRow,
    Block,
    Columns,
    clean_names,
    first_rows,
    rows_per_block,
    text_table,
)

KNOWN = ("prompt", "seed")


def test_names_lose_what_surrounds_them_and_columns_without_a_name_get_one() -> None:
    assert clean_names([" prompt", "\ufefftheme\u200b", "", " "], "t") == [
        "prompt",
        "theme",
        "column_3",
        "column_4",
    ]
    assert clean_names(["", "column_1"], "t") == ["column_1_", "column_1"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a", "a "], "two columns named 'a'"),
        (["x" * (MAX_NAME + 1)], f"more than {MAX_NAME} characters"),
        (["a\udcff"], "is not valid UTF-8 text"),
    ],
)
def test_names_that_cannot_be_used_are_one_sentence(names: list[str], words: str) -> None:
    with pytest.raises(PromptError, match=words) as error:
        clean_names(names, "The table t.csv")
    assert str(error.value).startswith("The table t.csv has ") and len(str(error.value)) < 200


def test_known_columns_are_found_under_our_name_or_the_given_one() -> None:
    assert Columns.match(["seed", "prompt"], KNOWN, {}, "t").names == {
        "prompt": "prompt",
        "seed": "seed",
    }
    columns = Columns.match(["caption", "theme"], KNOWN, {"prompt": " caption"}, "t")
    assert columns.names == {"prompt": "caption"}
    assert columns.others(["caption", "theme"]) == ["theme"]


@pytest.mark.parametrize("mapping", [{}, {"prompt": "caption"}, {"seed": "number"}])
def test_a_column_that_is_missing_is_named_with_those_that_exist(mapping: dict[str, str]) -> None:
    names = ["prompt"] if "seed" in mapping else ["text"]
    missing = next(iter(mapping.values()), "prompt")
    with pytest.raises(PromptError, match=f"t has no column '{missing}'.* its columns are '"):
        Columns.match(names, KNOWN, mapping, "t")


def test_too_many_columns_are_an_error() -> None:
    names = ["prompt", *(f"c{number}" for number in range(MAX_COLUMNS))]
    with pytest.raises(PromptError, match=f"expected at most {MAX_COLUMNS:,}"):
        Columns.match(names, KNOWN, {}, "t")


def test_a_block_has_few_rows_if_there_are_many_columns() -> None:
    assert rows_per_block(1) == BLOCK_ROWS
    for columns in (1, 50, 1000, 10**9):
        assert 1 <= rows_per_block(columns) <= max(1, BLOCK_CELLS // columns)


def test_a_table_without_columns_keeps_its_rows() -> None:
    assert text_table({}, 3).num_rows == 3
    table = text_table({"a": pa.array(["x", "y"])}, 2)
    assert table.to_pydict() == {"a": ["x", "y"]}


def block(*numbers: int, bad: tuple[int, ...] = ()) -> Block:
    texts = [f"text {number}" for number in numbers]
    extras = text_table({"theme": pa.array(texts, pa.string())}, len(texts))
    return Block(numbers, {"prompt": texts}, extras, [BadRow(n, "torn", "") for n in bad])


@pytest.mark.parametrize("limit", [None, 0, 1, 2, 3, 4, 5, 9])
def test_the_first_rows_include_those_that_cannot_be_read(limit: int | None) -> None:
    found = list(first_rows(iter([block(1, 3, bad=(2,)), block(4, 5), block(6)]), limit))
    numbers = sorted(
        number for one in found for number in (*one.numbers, *(bad.number for bad in one.bad))
    )
    assert numbers == list(range(1, 7))[:limit]
    for one in found:
        assert len(one.numbers) == len(one.values["prompt"]) == one.extras.num_rows
        assert one.values["prompt"] == [f"text {number}" for number in one.numbers]


def test_no_block_is_read_that_is_not_needed() -> None:
    def blocks() -> Iterator[Block]:
        yield block(1, 2)
        raise AssertionError("the first block has all rows")

    assert len(list(first_rows(blocks(), 2))) == 1
