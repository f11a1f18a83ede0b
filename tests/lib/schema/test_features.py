"""Columns of every type are declared as Hugging Face `datasets` loads them."""

from __future__ import annotations

from decimal import Decimal
from uuid import UUID

import pyarrow as pa
import pytest
from datasets import Features

from rudalle_lib.schema.arrow import schema
from rudalle_lib.schema.features import (
    features_of,
    has_maps,
    json_features,
    json_type,
    loadable,
    loadable_type,
)
from rudalle_lib.schema.records import ImageRecord

ITEM = pa.struct([("key", pa.string()), ("value", pa.int64())])
PAIRS = pa.map_(pa.string(), pa.int64())

LOADABLE = (
    *(pa.null(), pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64()),
    *(pa.string(), pa.large_string(), pa.binary(), pa.binary(4), pa.date32(), pa.date64()),
    *(pa.time32("s"), pa.time64("us"), pa.timestamp("ns", "Europe/Berlin"), pa.duration("us")),
    *(pa.decimal128(5, 2), pa.decimal256(50, 2), pa.list_(pa.int32()), pa.list_(pa.int32(), 3)),
    *(pa.large_list(pa.string()), pa.list_(pa.list_(pa.int8())), pa.list_(ITEM), ITEM),
    pa.struct([("a", pa.list_(pa.struct([("b", pa.string())])))]),
)


@pytest.mark.parametrize("kind", LOADABLE, ids=str)
def test_a_declared_column_has_the_type_of_the_file(kind: pa.DataType) -> None:
    columns = pa.schema([("x", kind)])
    declared = Features._from_yaml_list(features_of(columns))
    assert declared == Features.from_arrow_schema(columns)
    assert declared.arrow_schema.field("x").type == kind == loadable_type(kind)


def test_the_columns_of_the_metadata_are_declared() -> None:
    columns = schema(ImageRecord)
    assert Features._from_yaml_list(features_of(columns)).arrow_schema.types == columns.types


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (
            pa.array([[("a", 1)], None], PAIRS),
            pa.array([[{"key": "a", "value": 1}], None], pa.list_(ITEM)),
        ),
        (
            pa.array([{"m": [("a", 1)]}, {"m": None}], pa.struct([("m", PAIRS)])),
            pa.array(
                [{"m": [{"key": "a", "value": 1}]}, {"m": None}],
                pa.struct([("m", pa.list_(ITEM))]),
            ),
        ),
        (
            pa.array([Decimal("1.5"), None], pa.decimal32(5, 1)),
            pa.array([Decimal("1.5"), None], pa.decimal128(5, 1)),
        ),
        (
            pa.ExtensionArray.from_storage(
                pa.uuid(), pa.array([UUID(int=7).bytes, None], pa.binary(16))
            ),
            pa.array([UUID(int=7).bytes, None], pa.binary(16)),
        ),
    ],
    ids=["map", "map in a struct", "small decimal", "uuid"],
)
def test_what_datasets_cannot_load_becomes_what_it_can(
    column: pa.Array, expected: pa.Array
) -> None:
    table = loadable(pa.table({"a": [1, 2], "x": column}))
    assert table.column("x").combine_chunks().equals(expected)
    assert table.column("a").to_pylist() == [1, 2]
    assert Features.from_arrow_schema(table.schema)["a"].dtype == "int64"


def test_a_table_that_datasets_loads_stays_as_it_is() -> None:
    table = pa.table({"a": [1], "b": ["x"]})
    assert loadable(table) is table


def test_json_has_numbers_booleans_texts_lists_and_objects() -> None:
    kinds = {pa.int8(): pa.int8(), pa.float16(): pa.float16(), pa.bool_(): pa.bool_()}
    kinds |= dict.fromkeys([pa.date32(), pa.binary(), pa.decimal128(3, 1)], pa.string())
    kinds[pa.list_(pa.date32(), 2)] = pa.list_(pa.string())
    kinds[PAIRS] = pa.list_(ITEM)
    assert {kind: json_type(kind) for kind in kinds} == kinds
    columns = pa.schema([("t", pa.timestamp("us")), ("s", pa.struct([("d", pa.date32())]))])
    assert json_features(columns) == [
        {"name": "t", "dtype": "string"},
        {"name": "s", "struct": [{"name": "d", "dtype": "string"}]},
    ]


def test_maps_are_found_wherever_they_are() -> None:
    assert has_maps(PAIRS) and has_maps(pa.list_(pa.struct([("m", PAIRS)])))
    assert not has_maps(pa.list_(ITEM)) and not has_maps(pa.uuid())
