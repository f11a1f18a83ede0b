"""Parquet files in memory that contain their own SHA-256 (see `seals`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from rudalle_lib.errors import DamagedError, TornError
from rudalle_lib.storage import seals

SMALL_TABLE = 1000
"""Rows up to which dictionary encoding and Zstandard are not worth their set-up per column."""


MAGIC = b"PAR1"
"""First and last bytes of every Parquet file."""

MIN_BYTES = 12
"""Every Parquet file is at least this long."""


def to_parquet(table: pa.Table, metadata: Mapping[str, str] | None = None) -> bytes:
    """Write a table as a sealed Parquet file.

    Args:
        table: the table.
        metadata: is added to the schema metadata of the table.

    Returns:
        The content of the file.
    """
    added = {key.encode(): value.encode() for key, value in (metadata or {}).items()}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **added})
    large = table.num_rows > SMALL_TABLE
    encoding = {"use_dictionary": large, "compression": "zstd" if large else "snappy"}
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, **encoding) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({seals.KEY: seals.UNSEALED})
    return seals.seal(bytes(sink.getvalue()))


def from_parquet(content: bytes, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a sealed Parquet file.

    Args:
        content: the content of the file.
        name: name of the file in errors.
        columns: names of the columns to read; None reads all.

    Raises:
        DamagedError: a byte of the file has changed since it was sealed.
    """
    table = open_parquet(content, name).read(columns, use_threads=False)
    return table.replace_schema_metadata(_without_seal(table.schema.metadata))


def open_parquet(content: bytes, name: str) -> pq.ParquetFile:
    """A sealed file, checked but not decoded; raises like `from_parquet`."""
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split()).rstrip(".")
        is_torn = len(content) < MIN_BYTES or not content[:4] == content[-4:] == MAGIC
        kind = TornError if is_torn else DamagedError
        raise kind(f"Cannot read {name}: it is not a whole Parquet file ({why}).") from None
    if not seals.is_intact(content):
        raise DamagedError(
            f"{name} is damaged: its content does not match the SHA-256 that is stored in it."
        )
    return file


def _without_seal(metadata: Mapping[bytes, bytes] | None) -> dict[bytes, bytes]:
    return {key: value for key, value in (metadata or {}).items() if key != seals.KEY.encode()}
