"""Records as rows of Arrow tables: a frozen dataclass is a schema, its fields are the columns.

A column has its field's type, or the Arrow type that the field is annotated with; it is nullable
where the field may be None; the annotated text is its description.
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from dataclasses import fields
from operator import attrgetter
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import pyarrow as pa

Record = TypeVar("Record")

_ARROW_TYPES = {
    str: pa.string(),
    bytes: pa.binary(),
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
}
_schemas: dict[type[Any], pa.Schema] = {}


def schema(record: type[Any]) -> pa.Schema:
    """The Arrow schema of a record type, with the columns' descriptions as field metadata."""
    if record not in _schemas:  # making one takes longer than a table of few rows
        hints = get_type_hints(record, include_extras=True)
        columns = [_column(item.name, hints[item.name]) for item in fields(record)]
        _schemas[record] = pa.schema(columns)
    return _schemas[record]


def to_table(records: Iterable[Record], record: type[Record], **instead: list[Any]) -> pa.Table:
    """A table of the records, in order; its schema is `schema(record)`.

    Columns that are given `instead` have those values, one a row, and not the records' own.
    Raises `TypeError` where the record has no such column.
    """
    rows, columns = list(records), schema(record)
    if unknown := instead.keys() - set(columns.names):
        raise TypeError(f"{record.__name__} has no column {', '.join(sorted(unknown))}")
    own = [name for name in columns.names if name not in instead]
    values = {name: list(map(attrgetter(name), rows)) for name in own}
    return pa.table({**values, **instead}, columns)


def from_table(table: pa.Table, record: type[Record]) -> list[Record]:
    """The rows of a table as records; columns that the record does not know are left out.

    Raises `KeyError` where a column of the record is missing.
    """
    names = schema(record).names
    columns = [table.column(name).to_pylist() for name in names]
    return [record(**dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def _column(name: str, hint: Any) -> pa.Field:
    notes: list[Any] = []
    if get_origin(hint) is Annotated:
        hint, *notes = get_args(hint)
    nullable = get_origin(hint) in (Union, types.UnionType)
    plain = next(item for item in get_args(hint) if item is not type(None)) if nullable else hint
    arrow = next((note for note in notes if isinstance(note, pa.DataType)), None)
    description = next((note for note in notes if isinstance(note, str)), "")
    return pa.field(
        name, arrow or _ARROW_TYPES[plain], nullable, metadata={"description": description}
    )
