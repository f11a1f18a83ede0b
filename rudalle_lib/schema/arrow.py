"""Records as rows of Arrow tables: a frozen dataclass is a schema, its fields are the columns.

A column has its field's type, or the Arrow type that the field is annotated with; it is nullable
where the field may be None; the annotated text is its description.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Iterable
from dataclasses import MISSING, dataclass, fields
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


@dataclass(frozen=True, slots=True)
class Former:
    """The name that a column had in files of earlier versions; an annotation of its field."""

    name: str


@dataclass(frozen=True, slots=True)
class Later:
    """Marks a column that files of earlier versions lack; an annotation of a field with a default.

    It is then read as that default.
    """


_schemas: dict[type[Any], pa.Schema] = {}
_former_names: dict[type[Any], dict[str, str]] = {}
_later_names: dict[type[Any], frozenset[str]] = {}


def schema(record: type[Any]) -> pa.Schema:
    """The Arrow schema of a record type, with the columns' descriptions as field metadata."""
    if record not in _schemas:  # building one takes longer than building a table of few rows
        hints = get_type_hints(record, include_extras=True)
        columns = [_column(item.name, hints[item.name]) for item in fields(record)]
        _schemas[record] = pa.schema(columns)
    return _schemas[record]


def former_names(record: type[Any]) -> dict[str, str]:
    """The former names of a record's renamed columns, by current name."""
    if record not in _former_names:
        _former_names[record] = {
            name: note.name
            for name, hint in get_type_hints(record, include_extras=True).items()
            for note in get_args(hint)
            if isinstance(note, Former)
        }
    return _former_names[record]


def later_names(record: type[Any]) -> frozenset[str]:
    """The columns of a record that files of earlier versions lack."""
    if record not in _later_names:
        hints = get_type_hints(record, include_extras=True)
        _later_names[record] = frozenset(
            name
            for name, hint in hints.items()
            if any(isinstance(note, Later) for note in get_args(hint))
        )
    return _later_names[record]


def outdated_names(table: pa.Table, record: type[Any]) -> dict[str, str]:
    """The columns of a record that have former names in a table: current name by former name.

    A record's columns precede all others. So a pass-through column that happens to have a former
    name is not mistaken for the record's: the column with the current name comes first.
    """
    places = {name: place for place, name in enumerate(table.column_names)}
    return {
        former: current
        for current, former in former_names(record).items()
        if former in places and places[former] < places.get(current, len(places))
    }


def with_current_names(table: pa.Table, record: type[Any]) -> pa.Table:
    """The table with the record's columns under their current names; rows and order are the same.

    If a pass-through column already has such a name, it is renamed as `free_name` says.
    """
    outdated = outdated_names(table, record)
    if not outdated:
        return table
    names = [outdated.get(name, name) for name in table.column_names]
    for place, name in enumerate(table.column_names):
        if name in outdated.values():
            names[place] = free_name(name, names)
    return table.rename_columns(names).replace_schema_metadata(table.schema.metadata)


def free_name(name: str, taken: Collection[str]) -> str:
    """The name, prefixed with `input_` until it is not among those taken."""
    while name in taken:
        name = f"input_{name}"
    return name


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
    """The rows of a table as records, in order.

    Columns may have their former names. Columns that are not the record's are left out. Where an
    older table lacks a column whose field has a default, the records have the default.

    Raises:
        KeyError: a column without a default is missing.
    """
    table = with_current_names(table, record)
    found = set(table.column_names)
    names = [name for name in schema(record).names if name in found | _required(record)]
    columns = [_values(table.column(name)) for name in names]
    return [record(**dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def _required(record: type[Any]) -> set[str]:
    """The fields without a default."""
    return {
        item.name
        for item in fields(record)
        if item.default is MISSING and item.default_factory is MISSING
    }


def _values(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column; those of maps as dictionaries."""
    values = column.to_pylist()
    if pa.types.is_map(column.type):
        return [None if value is None else dict(value) for value in values]
    return values


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
