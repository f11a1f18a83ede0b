"""Tables of different shards are joined whatever their types; rows become JSON for every reader."""

from __future__ import annotations

import base64
import json
import math
from datetime import datetime
from typing import Any

import pyarrow as pa
import pytest

from rudalle_lib.schema.tables import (
    conform,
    join_tables,
    row_as_json,
    same_values,
    union_schema,
    with_plain_types,
)


def one(values: list[Any], kind: pa.DataType | None = None) -> pa.Table:
    return pa.table({"x": pa.array(values, kind)})


BIG = 2**60 + 1


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (one(["a"]), one(["b"], pa.large_string()), ["a", "b"]),
        (one([1]), one([1.5]), [1.0, 1.5]),
        (one([1], pa.int32()), one([2**40]), [1, 2**40]),
        (one([BIG]), one([1.5]), [str(BIG), "1.5"]),
        (one(["a"]).cast(pa.schema([("x", pa.dictionary(pa.int32(), pa.string()))])), one(["b"]),
         ["a", "b"]),
        (one(["a", None]), one([1]), ["a", None, "1"]),
        (one([True]), one([7]), ["True", "7"]),
        (one([[1]]), one([[1.5]]), [[1.0], [1.5]]),
        (one([{"a": 1}]), one([{"b": 2}]), [{"a": 1, "b": None}, {"a": None, "b": 2}]),
        (one([[1]]), one(["a"]), ["[1]", "a"]),
        (one([1], pa.timestamp("s")), one([1], pa.timestamp("s", "UTC")),
         ["1970-01-01 00:00:01", "1970-01-01 00:00:01+00:00"]),
        (one([None]), one([1.5]), [None, 1.5]),
        (one([1]), pa.table({"y": [2]}), [1, None]),
    ],
)  # fmt: skip
def test_tables_of_different_types_are_joined(
    first: pa.Table, second: pa.Table, expected: list[Any]
) -> None:
    assert join_tables([first, second]).column("x").to_pylist() == expected


def test_joining_keeps_types_that_are_the_same() -> None:
    table = pa.table({"a": [1], "b": [b"x"], "c": pa.array([1], pa.timestamp("ms", "UTC"))})
    assert join_tables([table, table]).schema == table.schema


NAN = math.nan


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ([1.0, NAN], [1.0, NAN], True),
        ([NAN], [1.0], False),
        ([NAN], [None], False),
        ([[1.0, NAN]], [[1.0, NAN]], True),
        ([{"a": NAN}], [{"a": NAN}], True),
        ([{"a": NAN}], [{"a": 0.0}], False),
        (["a"], ["b"], False),
        ([1], [1.0], False),
        ([1, 2], [1], False),
    ],
)
def test_nan_equals_nan(first: list[Any], second: list[Any], same: bool) -> None:
    assert same_values(one(first), one(second)) is same


def test_maps_with_nan_are_compared() -> None:
    kind = pa.map_(pa.string(), pa.float64())
    assert same_values(one([[("a", NAN)]], kind), one([[("a", NAN)]], kind))


def test_a_row_is_json_for_every_reader() -> None:
    row = {
        "text": "круг",
        "nan": NAN,
        "list": [math.inf, 1.0, {"deep": -math.inf}],
        "bytes": b"\xff\x00",
        "when": datetime(2026, 1, 2),
        "pairs": [("a", NAN)],
    }

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads(row_as_json(row), parse_constant=refuse)
    assert found == {
        "text": "круг",
        "nan": None,
        "list": [None, 1.0, {"deep": None}],
        "bytes": base64.b64encode(b"\xff\x00").decode(),
        "when": "2026-01-02 00:00:00",
        "pairs": [["a", None]],
    }


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.int64(), pa.float32(), pa.float64()),
        (pa.string(), pa.large_string(), pa.large_string()),
        (pa.null(), pa.date32(), pa.date32()),
        (pa.string(), pa.int32(), pa.string()),
        (pa.list_(pa.int32()), pa.bool_(), pa.string()),
    ],
    ids=str,
)
def test_a_column_of_several_types_has_one_that_holds_all(
    first: pa.DataType, second: pa.DataType, expected: pa.DataType
) -> None:
    schemas = [
        pa.schema([("a", pa.int8()), ("x", first)]),
        pa.schema([("x", second), ("b", first)]),
    ]
    columns = union_schema(schemas)
    assert columns.names == ["a", "x", "b"] and columns.field("x").type == expected
    for one_schema in schemas:
        assert conform(one_schema.empty_table(), columns).schema == columns


def test_a_table_conforms_with_nulls_for_columns_that_it_does_not_have() -> None:
    columns = pa.schema([("a", pa.int64()), ("b", pa.list_(pa.string())), ("c", pa.string())])
    found = conform(pa.table({"c": [1, 2], "a": pa.array([3, 4], pa.int8())}), columns)
    assert found.schema == columns
    assert found.to_pylist() == [{"a": 3, "b": None, "c": "1"}, {"a": 4, "b": None, "c": "2"}]


def test_large_types_become_plain_ones() -> None:
    table = pa.table({
        "s": pa.array(["a", None], pa.large_string()),
        "b": pa.array([b"a", None], pa.large_binary()),
        "l": pa.array([[1], None], pa.large_list(pa.int8())),
        "n": [1, 2],
    })  # fmt: skip
    plain = with_plain_types(table)
    assert plain.schema.types == [pa.string(), pa.binary(), pa.list_(pa.int8()), pa.int64()]
    assert plain.to_pylist() == table.to_pylist()
    assert with_plain_types(plain) is plain
