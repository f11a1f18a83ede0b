"""Columns as Hugging Face `datasets` knows them: which types it can load, and their declaration.

The features of a dataset stand in the front matter of its card, so that a column has one type in
all shards, even in those where it is empty or missing.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

Feature = dict[str, Any]
"""A column in the form of a card's `dataset_info.features`: `name`, and `dtype`, `list` or
`struct`."""

_NAMES = {
    "halffloat": "float16",
    "float": "float32",
    "double": "float64",
    "date32[day]": "date32",
    "date64[ms]": "date64",
}
"""Names of types that `datasets` calls otherwise than Arrow."""


# --- types ---------------------------------------------------------------------------------------


def loadable_type(kind: pa.DataType) -> pa.DataType:
    """The type that `datasets` loads in place of a type that it does not know.

    Maps become lists of keys and values, extension types their storage, and small decimals those of
    128 bits.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return loadable_type(kind.storage_type)
    if pa.types.is_map(kind):
        return pa.list_(
            pa.struct(
                {
                    "key": loadable_type(kind.key_type),
                    "value": loadable_type(kind.item_type),
                }
            )  # fmt: skip
        )
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(loadable_type(field.type)) for field in kind])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(loadable_type(kind.value_type), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(loadable_type(kind.value_type))
    if pa.types.is_list(kind):
        return pa.list_(loadable_type(kind.value_type))
    if pa.types.is_decimal32(kind) or pa.types.is_decimal64(kind):
        return pa.decimal128(kind.precision, kind.scale)
    return kind


def loadable(table: pa.Table) -> pa.Table:
    """The table with the types that `datasets` loads; values and order are the same."""
    for index, field in enumerate(table.schema):
        kind = loadable_type(field.type)
        if kind != field.type:
            stored, source = field.type, table.column(index)
            if isinstance(stored, pa.BaseExtensionType):
                stored = stored.storage_type
                source = pa.chunked_array([part.storage for part in source.chunks], stored)
            values = [_loadable(value, stored) for value in source.to_pylist()]
            column = pa.chunked_array([pa.array(values, kind)])
            table = table.set_column(index, field.with_type(kind), column)
    return table


def _loadable(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_map(kind):
        return [
            {"key": _loadable(key, kind.key_type), "value": _loadable(item, kind.item_type)}
            for key, item in value
        ]
    if pa.types.is_struct(kind):
        return {field.name: _loadable(value[field.name], field.type) for field in kind}
    if _is_list(kind):
        return [_loadable(item, kind.value_type) for item in value]
    return value


def has_maps(kind: pa.DataType) -> bool:
    """Whether values of a type are or contain maps."""
    if isinstance(kind, pa.BaseExtensionType):
        return has_maps(kind.storage_type)
    children = (kind.field(index).type for index in range(kind.num_fields))
    return pa.types.is_map(kind) or any(map(has_maps, children))


def json_type(kind: pa.DataType) -> pa.DataType:
    """The type that values of a type have in JSON: numbers, booleans, text, lists or objects."""
    kind = loadable_type(kind)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(json_type(field.type)) for field in kind])
    if _is_list(kind):
        return pa.list_(json_type(kind.value_type))
    kept = (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_null(kind)
    )
    return kind if kept else pa.string()


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


# --- declaration ---------------------------------------------------------------------------------


def features_of(columns: pa.Schema) -> list[Feature]:
    """The columns in the form of a card's `dataset_info.features`."""
    return [feature(field.name, loadable_type(field.type)) for field in columns]


def json_features(columns: pa.Schema) -> list[Feature]:
    """The same, of rows that were written as JSON objects."""
    return [feature(field.name, json_type(field.type)) for field in columns]


def feature(name: str, kind: pa.DataType) -> Feature:
    """A column of a type that `datasets` loads."""
    return {"name": name, **_declared(kind)}


def _declared(kind: pa.DataType) -> Feature:
    if pa.types.is_struct(kind):
        return {"struct": [feature(field.name, field.type) for field in kind]}
    if not _is_list(kind):
        return {"dtype": _NAMES.get(str(kind), str(kind))}
    inner = _declared(kind.value_type)
    items = inner.get("dtype", inner.get("struct", inner))
    if pa.types.is_fixed_size_list(kind):
        return {"list": items, "length": kind.list_size}
    return {"large_list" if pa.types.is_large_list(kind) else "list": items}
