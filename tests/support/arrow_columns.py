"""Columns of every Arrow type, with nulls and with the values that are easily lost."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa
from hypothesis import strategies as st

VIEW = pa.string_view()
DAY = dt.date(2026, 11, 29)
IDS = [UUID(int=1).bytes, None, UUID(int=2).bytes]

COLUMNS: dict[str, pa.Array] = {
    "null": pa.nulls(3),
    "bool": pa.array([True, None, False]),
    "int8": pa.array([-128, None, 127], pa.int8()),
    "uint64": pa.array([2**64 - 1, None, 0], pa.uint64()),
    "float16": pa.array([1.5, None, math.nan], pa.float16()),
    "float32": pa.array([math.inf, None, math.nan], pa.float32()),
    "float64": pa.array([math.nan, None, -math.inf]),
    "decimal32": pa.array([Decimal("1.5"), None, Decimal(2)], pa.decimal32(5, 1)),
    "decimal64": pa.array([Decimal("1.5"), None, Decimal(2)], pa.decimal64(12, 1)),
    "decimal128": pa.array([Decimal("1.5"), None, Decimal(2)], pa.decimal128(38, 1)),
    "decimal256": pa.array([Decimal("1.5"), None, Decimal(2)], pa.decimal256(70, 1)),
    "date32": pa.array([DAY, None, dt.date(1, 1, 1)], pa.date32()),
    "date64": pa.array([DAY, None, None], pa.date64()),
    "time32": pa.array([1, None, 2], pa.time32("s")),
    "time64 ns": pa.array([1001, None, 2], pa.time64("ns")),
    "timestamp s": pa.array([1, None, 2], pa.timestamp("s")),
    "timestamp ns": pa.array([1001, None, 2], pa.timestamp("ns")),
    "timestamp zone": pa.array([1, None, 2], pa.timestamp("us", "Europe/Berlin")),
    "timestamp offset": pa.array([1, None, 2], pa.timestamp("ms", "+03:00")),
    "timestamp unknown zone": pa.array([1, None, 2], pa.timestamp("us", "Mars/Olympus")),
    "duration ns": pa.array([1001, None, -2], pa.duration("ns")),
    "interval": pa.array([pa.MonthDayNano([1, 2, 3]), None, None]),
    "string": pa.array(["ё", None, ""]),
    "large string": pa.array(["a", None, ""], pa.large_string()),
    "string view": pa.array(["a" * 50, None, ""], VIEW),
    "binary": pa.array([b"\xff\x00", None, b""]),
    "large binary": pa.array([b"\xff", None, b""], pa.large_binary()),
    "binary view": pa.array([b"\xff" * 50, None, b""], pa.binary_view()),
    "fixed binary": pa.array([b"ab", None, b"cd"], pa.binary(2)),
    "fixed binary 0": pa.array([b"", None, b""], pa.binary(0)),
    "list": pa.array([[1, None], None, []]),
    "large list": pa.array([[1], None, []], pa.large_list(pa.int64())),
    "list view": pa.array([[1], None, []], pa.list_view(pa.int64())),
    "list of views": pa.array([["a", None], None, []], pa.list_(VIEW)),
    "list of nulls": pa.array([[None], None, []], pa.list_(pa.null())),
    "list of NaN": pa.array([[math.nan], None, [1.0]]),
    "list of binary": pa.array([[b"\xff"], None, []]),
    "fixed list": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int64(), 2)),
    "fixed list 0": pa.array([[], None, []], pa.list_(pa.int64(), 0)),
    "map": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int64())),
    "map of views": pa.array([[("a", "b")], None, []], pa.map_(VIEW, VIEW)),
    "struct": pa.array([{"a": 1, "b": [math.nan]}, None, {"a": None, "b": None}]),
    "struct of view": pa.array([{"a": "x"}, None, None], pa.struct([("a", VIEW)])),
    "struct without fields": pa.array([{}, None, {}], pa.struct([])),
    "struct with one name twice": pa.StructArray.from_arrays(
        [pa.array([1, 2, 3]), pa.array([4, 5, 6])], names=["a", "a"]
    ),
    "struct with a field without name": pa.StructArray.from_arrays(
        [pa.array([1, 2, 3])], names=[""]
    ),
    "dictionary": pa.array(["a", None, "b"]).dictionary_encode(),
    "dictionary of int": pa.array([5, None, 6]).dictionary_encode(),
    "dictionary of binary": pa.array([b"\xff", None, b""]).dictionary_encode(),
    "list of dictionary": pa.ListArray.from_arrays(
        [0, 1, 1, 2], pa.array(["a", "b"]).dictionary_encode()
    ),
    "struct of dictionary": pa.StructArray.from_arrays(
        [pa.array(["a", "b", "a"]).dictionary_encode()], names=["x"]
    ),
    "run-end encoded": pa.RunEndEncodedArray.from_arrays(
        pa.array([2, 3], pa.int32()), pa.array(["a", "b"])
    ),
    "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array(IDS, pa.binary(16))),
    "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a":1}', None, "1"])),
    "bool8": pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, None, 0], pa.int8())),
    "opaque": pa.ExtensionArray.from_storage(
        pa.opaque(pa.string(), "kind", "vendor"), pa.array(["a", None, "b"])
    ),
    "tensor": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.int32(), [2]),
        pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int32(), 2)),
    ),
    "list of uuid": pa.ListArray.from_arrays(
        [0, 1, 1, 2],
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array(IDS[::2], pa.binary(16))),
    ),
    "sparse union": pa.UnionArray.from_sparse(
        pa.array([0, 1, 0], pa.int8()), [pa.array([1, 2, 3]), pa.array(["a", "b", "c"])]
    ),
    "dense union": pa.UnionArray.from_dense(
        pa.array([0, 1, 0], pa.int8()),
        pa.array([0, 0, 1], pa.int32()),
        [pa.array([1, 2]), pa.array(["a"])],
    ),
}
"""A column of three rows per type."""

SINGLE: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.float64(), st.floats()),
    (pa.float32(), st.floats(width=32)),
    (pa.bool_(), st.booleans()),
    (pa.string(), st.text(max_size=5)),
    (pa.large_string(), st.text(max_size=5)),
    (pa.string_view(), st.text(max_size=20)),
    (pa.binary(), st.binary(max_size=5)),
    (pa.binary_view(), st.binary(max_size=20)),
    (pa.binary(3), st.binary(min_size=3, max_size=3)),
    (pa.decimal128(20, 2), st.decimals(-(10**6), 10**6, places=2)),
    (pa.date32(), st.dates()),
    (pa.timestamp("us"), st.datetimes()),
    (pa.timestamp("us", "UTC"), st.datetimes(timezones=st.just(dt.UTC))),
    (pa.timestamp("s"), st.integers(-(2**62), 2**62)),
    (pa.duration("ms"), st.integers(-(2**62), 2**62)),
    (pa.date32(), st.integers(-(2**31), 2**31 - 1)),
    (pa.null(), st.none()),
]
"""Types that are not nested, with values, some of them out of Python's range."""

Typed = tuple[pa.DataType, st.SearchStrategy[Any]]


def typed(depth: int = 3) -> st.SearchStrategy[Typed]:
    """A type, also a nested one, and a strategy of its values."""
    single = st.sampled_from(SINGLE)
    if depth == 0:
        return single
    inner = typed(depth - 1)
    return st.one_of(
        single,
        inner.map(lambda item: (pa.list_(item[0]), st.lists(st.none() | item[1], max_size=3))),
        inner.map(
            lambda item: (
                pa.large_list(item[0]),
                st.lists(st.none() | item[1], max_size=2),
            )  # fmt: skip
        ),
        inner.map(
            lambda item: (
                pa.list_(item[0], 2),
                st.lists(st.none() | item[1], min_size=2, max_size=2),
            )  # fmt: skip
        ),
        inner.map(
            lambda item: (
                pa.map_(pa.string(), item[0]),
                st.lists(st.tuples(st.text(max_size=3), st.none() | item[1]), max_size=2),
            )
        ),
        st.lists(inner, min_size=1, max_size=3).map(_struct),
    )


def _struct(items: list[Typed]) -> Typed:
    fields = [(f"f{number}", kind) for number, (kind, _) in enumerate(items)]
    values = {f"f{number}": st.none() | value for number, (_, value) in enumerate(items)}
    return pa.struct(fields), st.fixed_dictionaries(values)


@st.composite
def columns(draw: st.DrawFn, rows: int = 3) -> pa.Array:
    """A column of any type that Arrow can make of Python's values."""
    kind, value = draw(typed())
    values = draw(st.lists(st.none() | value, min_size=rows, max_size=rows))
    return pa.array(values, kind)
