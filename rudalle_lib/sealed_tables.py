"""Tables as Parquet files that carry the SHA-256 of themselves (`seals`), in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from rudalle_lib import seals
from rudalle_lib.errors import DamagedError

#: Up to so many rows, dictionaries of a table's values take more time than they save space, and
#: so does Zstandard, which is set up anew for every column.
SMALL_TABLE = 1000


def to_parquet(table: pa.Table, metadata: Mapping[str, str] | None = None) -> bytes:
    """The table as a sealed file, `metadata` in its schema."""
    own = {key.encode(): value.encode() for key, value in (metadata or {}).items()}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **own})
    large = table.num_rows > SMALL_TABLE
    how = {"use_dictionary": large, "compression": "zstd" if large else "snappy"}
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, **how) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({seals.KEY: seals.UNSEALED})
    return seals.seal(bytes(sink.getvalue()))


def from_parquet(content: bytes, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The table, or some columns of it; `name` is the file's, for errors.

    Raises:
        DamagedError: any byte of the file is not as it was sealed.
    """
    file = _parquet(content, name)
    if not seals.is_whole(content):
        raise DamagedError(
            f"{name} is damaged: expected the bytes that were written, whose SHA-256 they "
            "carry, found others."
        )
    table = file.read(columns, use_threads=False)
    return table.replace_schema_metadata(_without_seal(table.schema.metadata))


def _parquet(content: bytes, name: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split()).rstrip(".")
        raise DamagedError(f"Cannot read {name}: it is not a whole Parquet file ({why}).") from None


def _without_seal(metadata: Mapping[bytes, bytes] | None) -> dict[bytes, bytes]:
    return {key: value for key, value in (metadata or {}).items() if key != seals.KEY.encode()}
