"""Which Arrow types columns of a prompt table may have, and the types that they are stored with.

A pass-through column is written to plans, metadata, archives and JSON, split into shards and joined
again. Arrow cannot do all of that with all of its types. So views become plain types, dictionaries
and runs become their values, and types that cannot be stored are refused before anything is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

MAX_FIELDS = 1000
"""The most fields of a nested type."""

MAX_TYPE_DEPTH = 20
"""The deepest nesting of a type."""


class UnstorableTypeError(ValueError):
    """A type that cannot be stored; the message says why, as the second half of a sentence."""


def stored_type(kind: pa.DataType) -> pa.DataType:
    """The type that values of a type are stored with; equal values remain equal.

    Raises:
        UnstorableTypeError: they cannot be stored.
    """
    return _stored(kind, [MAX_FIELDS], 0)


def _stored(kind: pa.DataType, fields_left: list[int], depth: int) -> pa.DataType:
    fields_left[0] -= 1
    if depth > MAX_TYPE_DEPTH:
        raise UnstorableTypeError(f"is nested deeper than {MAX_TYPE_DEPTH} levels")
    if fields_left[0] < 0:
        raise UnstorableTypeError(f"has more than {MAX_FIELDS:,} fields")
    if isinstance(kind, pa.BaseExtensionType):
        storage = _stored(kind.storage_type, fields_left, depth)
        # Lists of extension types cannot be converted to pandas.
        return kind if depth == 0 and storage == kind.storage_type else storage
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _stored(kind.value_type, fields_left, depth)
    for is_kind, plain in _PLAIN:
        if is_kind(kind):
            return plain
    if pa.types.is_nested(kind):
        return _stored_nested(kind, fields_left, depth + 1)
    _check_single(kind)
    return kind


_PLAIN: tuple[tuple[Callable[[pa.DataType], bool], pa.DataType], ...] = (
    (pa.types.is_string_view, pa.string()),
    (pa.types.is_binary_view, pa.binary()),
)
"""Types that are stored as another one."""


def _stored_nested(kind: pa.DataType, fields_left: list[int], depth: int) -> pa.DataType:
    def stored(field: pa.Field) -> pa.Field:
        return field.with_type(_stored(field.type, fields_left, depth))

    if pa.types.is_struct(kind):
        fields = [stored(kind.field(index)) for index in range(kind.num_fields)]
        names = [field.name for field in fields]
        if not names:
            raise UnstorableTypeError("is a struct without fields")
        if len(set(names)) < len(names):
            raise UnstorableTypeError("is a struct with two fields of one name")
        return pa.struct(fields)
    if pa.types.is_map(kind):
        return pa.map_(stored(kind.key_field), stored(kind.item_field), kind.keys_sorted)
    if pa.types.is_fixed_size_list(kind):
        if kind.list_size == 0:
            raise UnstorableTypeError("is a list of the fixed size 0")
        return pa.list_(stored(kind.value_field), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_list_view(kind):
        return pa.list_(stored(kind.value_field))
    if pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(stored(kind.value_field))
    raise UnstorableTypeError("cannot be stored as Parquet")


def _check_single(kind: pa.DataType) -> None:
    """Refuse what Parquet cannot store, or Python cannot read."""
    if pa.types.is_interval(kind):
        raise UnstorableTypeError("cannot be stored as Parquet")
    if pa.types.is_fixed_size_binary(kind) and kind.byte_width == 0:
        raise UnstorableTypeError("is binary of the fixed size 0")
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        try:
            pa.lib.string_to_tzinfo(kind.tz)
        except Exception:
            raise UnstorableTypeError("has an unknown time zone") from None


def cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """A column with its values as a type that `stored_type` has returned."""
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    if pa.types.is_dictionary(column.type):
        column = cast(column.dictionary, kind).take(column.indices)
    if isinstance(column.type, pa.BaseExtensionType) and column.type != kind:
        column = column.storage
    if column.type == kind:
        return column
    if not _has_delicate_lists(column.type):
        try:
            made = column.cast(kind)
            made.validate()
            return made
        except pa.ArrowException:
            pass
    return pa.array(column.to_pylist(), kind)


def _has_delicate_lists(kind: pa.DataType) -> bool:
    """Whether a type has lists that Arrow's own cast makes wrong offsets of (as of 26.0)."""
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return True
    if pa.types.is_fixed_size_list(kind):
        return True
    return any(_has_delicate_lists(kind.field(index).type) for index in range(kind.num_fields))


# --- values that Python cannot hold ------------------------------------------------------------


def unreadable_rows(column: pa.ChunkedArray) -> list[int]:
    """The positions of values that Python cannot hold, such as a date in the year 20000."""
    if not _has_times(column.type):
        return []
    try:
        column.to_pylist()
    except Exception:
        return [place for place, value in enumerate(column) if not _is_readable(value)]
    return []


def _has_times(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _has_times(kind.storage_type)
    if pa.types.is_temporal(kind):
        return True
    return any(_has_times(kind.field(index).type) for index in range(kind.num_fields))


def _is_readable(value: Any) -> bool:
    try:
        value.as_py()
    except Exception:
        return False
    return True


def rows_larger_than(table: pa.Table, max_bytes: int) -> list[int]:
    """The positions of rows whose values have more bytes than that."""
    if table.nbytes <= max_bytes:
        return []
    sizes = pa.array([0] * table.num_rows, pa.int64())
    for column in table.columns:
        sizes = pc.add(sizes, _sizes(column))
    return pc.indices_nonzero(pc.greater(sizes, max_bytes)).to_pylist()


def _sizes(column: pa.ChunkedArray) -> pa.Array | int:
    """About the number of bytes of each value."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or (
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    ):  # fmt: skip
        lengths = pc.fill_null(pc.binary_length(column), 0).cast(pa.int64())
        return pa.concat_arrays(lengths.chunks) if lengths.num_chunks != 1 else lengths.chunk(0)
    if pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType):
        return pa.array([column.slice(row, 1).nbytes for row in range(len(column))], pa.int64())
    return 8 if pa.types.is_null(kind) else max(1, kind.bit_width // 8)
