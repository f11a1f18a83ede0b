"""Columns that were renamed are read under both names, and pass-through columns keep theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pyarrow as pa
import pytest

from rudalle_lib.schema.arrow import (
    Former,
    former_names,
    free_name,
    from_table,
    outdated_names,
    schema,
    to_table,
    with_current_names,
)
from rudalle_lib.schema.records import CutoutRecord, ImageRecord, PixelsRecord, ScoreRecord


@dataclass(frozen=True)
class Thing:
    """A record with a renamed column between others."""

    name: Annotated[str, "Name"]
    size: Annotated[int, Former("length"), "Size"]
    colour: Annotated[str | None, "Colour"]


FORMER = pa.table({"name": ["a", "b"], "length": [1, 2], "colour": ["red", None]})
CURRENT = FORMER.rename_columns(["name", "size", "colour"])


def test_former_names_are_annotations() -> None:
    assert former_names(Thing) == {"size": "length"}
    assert former_names(PixelsRecord) == {"image": "picture"}
    assert former_names(CutoutRecord) == {"image": "picture", "background": "ground"}
    assert former_names(ImageRecord) == {"background": "ground"}
    assert former_names(ScoreRecord) == {}
    assert schema(Thing).field("size").metadata == {b"description": b"Size"}


def test_records_are_read_under_both_names_and_written_under_the_current_one() -> None:
    rows = [Thing("a", 1, "red"), Thing("b", 2, None)]
    assert from_table(FORMER, Thing) == from_table(CURRENT, Thing) == rows
    assert to_table(rows, Thing).column_names == ["name", "size", "colour"]
    with pytest.raises(KeyError):
        from_table(FORMER.drop_columns(["length"]), Thing)


def test_a_table_with_current_names_is_returned_as_it_is() -> None:
    assert outdated_names(FORMER, Thing) == {"length": "size"}
    assert with_current_names(FORMER, Thing).equals(CURRENT)
    assert outdated_names(CURRENT, Thing) == {}
    assert with_current_names(CURRENT, Thing) is CURRENT


def test_a_pass_through_column_with_a_former_name_keeps_it() -> None:
    table = CURRENT.append_column("length", pa.array(["long", "short"]))
    assert with_current_names(table, Thing) is table
    assert from_table(table, Thing) == from_table(CURRENT, Thing)


def test_a_pass_through_column_gives_way_to_a_renamed_one() -> None:
    table = FORMER.append_column("size", pa.array(["L", "M"]))
    table = table.append_column("input_size", pa.array(["XL", "XS"]))
    found = with_current_names(table, Thing)
    assert found.column_names == ["name", "size", "colour", "input_input_size", "input_size"]
    assert found.column("size").to_pylist() == [1, 2]
    assert found.column("input_input_size").to_pylist() == ["L", "M"]
    assert from_table(table, Thing) == from_table(CURRENT, Thing)


def test_metadata_of_a_table_survives_the_renaming() -> None:
    described = pa.field("length", pa.int64(), metadata={"description": "Size"})
    table = FORMER.set_column(1, described, FORMER.column(1))
    table = table.replace_schema_metadata({"fingerprint": "f"})
    found = with_current_names(table, Thing).schema
    assert found.metadata == {b"fingerprint": b"f"}
    assert found.field("size").metadata == {b"description": b"Size"}


def test_a_free_name_is_none_of_those_taken() -> None:
    assert free_name("x", ["y"]) == "x"
    assert free_name("x", ["x", "input_x"]) == "input_input_x"
