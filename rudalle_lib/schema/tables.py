"""Tables of different shards: joining and comparing them, and their rows as JSON."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa


def join_tables(tables: Iterable[pa.Table]) -> pa.Table:
    """The rows of all tables, in order.

    Columns that only some tables have hold nulls for the others. If a column has several types, it
    gets one that holds the values of all, such as double for int64 and double; text if none does.
    """
    parts = list(tables)
    try:
        return pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException:
        common = _common_types(parts)
        parts = [_with_types(part, common) for part in parts]
        return pa.concat_tables(parts, promote_options="permissive")


def with_metadata(table: pa.Table, added: Mapping[str, str]) -> pa.Table:
    """The table with more metadata; what it has already stays."""
    metadata = {key.encode(): value.encode() for key, value in added.items()}
    return table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata})


def union_schema(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """The columns of all schemas, in order, with the types that `join_tables` gives them."""
    return join_tables(one.empty_table() for one in schemas).schema


def conform(table: pa.Table, columns: pa.Schema) -> pa.Table:
    """The rows of a table with the columns and types of a `union_schema`; null where it has none.

    Nothing but columns, types and nullability is taken from the schema.
    """
    joined = join_tables([columns.empty_table(), table.replace_schema_metadata()])
    return pa.table(joined.columns, schema=columns)


def with_plain_types(table: pa.Table) -> pa.Table:
    """The table with large strings, binaries and lists as plain ones.

    Writers of Parquet choose one or the other, and a dataset must not have both. A column stays as
    it is if it is too large for that.
    """
    for index, field in enumerate(table.schema):
        kind = _plain(field.type)
        if kind != field.type:
            try:
                column = table.column(index).cast(kind)
            except pa.ArrowInvalid:  # over 2 GiB
                continue
            table = table.set_column(index, field.with_type(kind), column)
    return table


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_large_binary(kind):
        return pa.binary()
    return pa.list_(kind.value_type) if pa.types.is_large_list(kind) else kind


def same_values(first: pa.Table, second: pa.Table) -> bool:
    """Whether two tables have the same columns, types and values; NaN equals NaN."""
    if first.schema != second.schema or first.num_rows != second.num_rows:
        return False
    columns = zip(first.columns, second.columns, strict=True)
    return all(one.equals(other) or _same_column(one, other) for one, other in columns)


def row_as_json(row: Mapping[str, Any] | Sequence[Any]) -> str:
    """A row of a table, or a nested value of one, as JSON that any reader of JSON accepts.

    Binary values become Base64, NaN and infinite numbers null, maps lists of pairs, and values that
    JSON does not have, such as times, text.
    """
    try:
        return json.dumps(row, ensure_ascii=False, default=as_text, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(row), ensure_ascii=False, default=as_text, allow_nan=False)


# --- types ---------------------------------------------------------------------------------------


def _common_types(tables: Sequence[pa.Table]) -> dict[str, pa.DataType]:
    """A type for each column that has several which cannot be promoted to one."""
    names = dict.fromkeys(name for table in tables for name in table.column_names)
    common: dict[str, pa.DataType] = {}
    for name in names:
        columns = [table.select([name]) for table in tables if name in table.column_names]
        try:
            pa.concat_tables(columns, promote_options="permissive")
        except pa.ArrowException:
            values = {_value_type(column.schema.field(0).type) for column in columns}
            common[name] = values.pop() if len(values) == 1 else pa.string()
    return common


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _with_types(table: pa.Table, types: Mapping[str, pa.DataType]) -> pa.Table:
    for index, field in enumerate(table.schema):
        kind = types.get(field.name, field.type)
        if kind != field.type:
            column = table.column(index)
            if pa.types.is_dictionary(field.type):
                column = column.cast(field.type.value_type)
            if column.type != kind:
                texts = [None if value is None else str(value) for value in column.to_pylist()]
                column = pa.chunked_array([pa.array(texts, kind)])
            table = table.set_column(index, field.with_type(kind), column)
    return table


# --- values --------------------------------------------------------------------------------------


def _same_column(first: pa.ChunkedArray, second: pa.ChunkedArray) -> bool:
    pairs = zip(first.to_pylist(), second.to_pylist(), strict=True)
    return all(_same(one, other) for one, other in pairs)


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal or NaN, also inside lists and objects."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other) or bool(one != one and other != other)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def as_text(value: Any) -> str:
    """A value that JSON does not have: binary values as Base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)
