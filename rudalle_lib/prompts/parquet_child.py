"""Decodes Parquet in a process of its own, whose memory is limited.

A Parquet file of a few hundred bytes can unpack to any size in many ways, and the library has no
limit. So this process may use `MEMORY_BYTES`, or what the table is allowed, and no more. It asks
its parent for every part of the file and answers with blocks of rows; it opens no files and gets
no secrets. See `parquet_reader`.
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import socket
import struct
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MEMORY_BYTES = 2**30
"""Address space of the process, unless a table needs more."""

READ_AHEAD = 2**20
"""Bytes of a column that are read at a time."""

LARGE_VALUE = 4096
"""Stored bytes per value of a column from which on its values are no texts that occur often."""

OPEN, NEXT, CONTENT = b"O", b"N", b"C"
"""Messages to this process: a file, a request for its next rows, a part of the file."""

READ, SCHEMA, ROWS, TOO_LARGE, END, FAILED = b"R", b"S", b"B", b"L", b"E", b"F"
"""Messages from this process: see `_Table`."""

_HEADER = struct.Struct("<cQ")
_PART = struct.Struct("<QQ")


def send(connection: socket.socket, kind: bytes, content: bytes = b"") -> None:
    """Send a message: a kind, and its content."""
    connection.sendall(_HEADER.pack(kind, len(content)))
    if content:
        connection.sendall(content)


def receive(connection: socket.socket) -> tuple[bytes, bytes]:
    """Receive a message.

    Raises:
        EOFError: the other process has ended.
    """
    kind, size = _HEADER.unpack(_receive(connection, _HEADER.size))
    return kind, _receive(connection, size)


def part_of(content: bytes) -> tuple[int, int]:
    """Position and size of the part of a file that a message asks for."""
    position, size = _PART.unpack(content)
    return position, size


def _receive(connection: socket.socket, size: int) -> bytes:
    content = bytearray(size)
    view = memoryview(content)
    received = 0
    while received < size:
        count = connection.recv_into(view[received:])
        if count == 0:
            raise EOFError("the other process has ended")
        received += count
    return bytes(content)


def serve() -> None:
    """Decode the files that the parent sends, one after the other, until it ends."""
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    connection = socket.socket(fileno=sys.stdin.fileno())
    table: _Table | None = None
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            kind, content = receive(connection)
            try:
                if kind == OPEN:
                    table = None  # frees the memory of the one before
                    limits = json.loads(content)
                    _limit(resource.RLIMIT_AS, limits["memory_bytes"])
                    table = _Table(connection, limits)
                    send(connection, SCHEMA, table.description())
                elif table is not None:
                    send(connection, *next(table.blocks, (END, b"")))
            except (EOFError, ConnectionError):
                raise
            except MemoryError:
                send(connection, FAILED, b"memory")
            except Exception as error:
                send(connection, FAILED, f"error {' '.join(str(error).split())}"[:2000].encode())


def _limit(what: int, wanted: int) -> None:
    hard = resource.getrlimit(what)[1]
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(ValueError, OSError):  # not on every system
        resource.setrlimit(what, (soft, hard))


class _File(io.RawIOBase):
    """The parent's file."""

    def __init__(self, connection: socket.socket, size: int) -> None:
        super().__init__()
        self._connection, self._size = connection, size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        size = left if size is None or size < 0 else min(size, left)
        if size == 0:
            return b""
        send(self._connection, READ, _PART.pack(self._position, size))
        kind, content = receive(self._connection)
        if kind != CONTENT:
            raise EOFError("the parent has something else to do")
        self._position += len(content)
        return content


class _Table:
    """A table, and its blocks as messages.

    `ROWS` has rows as an Arrow stream, `TOO_LARGE` is a row that is larger than the limit.
    """

    def __init__(self, connection: socket.socket, limits: dict[str, Any]) -> None:
        import pyarrow.parquet as pq

        file = _File(connection, limits["size"])
        plain = pq.ParquetFile(file, pre_buffer=False, buffer_size=READ_AHEAD)
        self._limits = limits
        _check_sizes(plain.metadata, limits["column_bytes"])
        self.schema = plain.schema_arrow
        self.rows = plain.metadata.num_rows
        # Texts that occur often stay one text until it is known how much memory their copies need.
        texts = _texts(plain)
        self._file = pq.ParquetFile(
            file,
            metadata=plain.metadata,
            read_dictionary=texts,
            pre_buffer=False,
            buffer_size=READ_AHEAD,
        )
        self.blocks = self._blocks()

    def description(self) -> bytes:
        """The number of rows, and for each column its name and type, and why it is refused."""
        from rudalle_lib.prompts.column_types import UnstorableTypeError, stored_type

        columns = []
        for column in self.schema:
            why = None
            try:
                stored_type(column.type)
            except UnstorableTypeError as error:
                why = str(error)
            columns.append((column.name, str(column.type)[:80], why))
        return json.dumps({"rows": self.rows, "columns": columns}).encode()

    def _blocks(self) -> Iterator[tuple[bytes, bytes]]:
        import pyarrow as pa

        from rudalle_lib.prompts.column_types import cast, stored_type

        types = [stored_type(column.type) for column in self.schema]
        names = [str(number) for number in range(len(types))]
        schema = pa.schema(list(zip(names, types, strict=True)))
        rows = _rows_per_block(self._file.metadata, self._limits)
        block = _Block(schema)
        for batch in self._batches(rows):
            for part in _split(batch, self._limits["block_bytes"]):
                size = _size(part)
                too_large = part.num_rows == 1 and size > self._limits["row_bytes"]
                full = (
                    block.rows + part.num_rows > rows
                    or block.bytes + size > (self._limits["block_bytes"])
                )
                if block.rows and (full or too_large):
                    yield ROWS, block.message()
                    block = _Block(schema)
                if too_large:
                    yield TOO_LARGE, b""
                else:
                    columns = list(map(cast, part.columns, types))
                    block.add(pa.record_batch(columns, schema=schema), size)
        if block.rows:
            yield ROWS, block.message()

    def _batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """Batches of at most so many rows; none has rows of two row groups.

        Each row group has its own dictionaries, and Arrow cannot join those inside of structs.
        """
        for group in range(self._file.num_row_groups):
            yield from self._file.iter_batches(rows, row_groups=[group], use_threads=False)


class _Block:
    """Rows of one or several row groups, as an Arrow stream."""

    def __init__(self, schema: pa.Schema) -> None:
        import pyarrow as pa

        self._sink = pa.BufferOutputStream()
        self._writer = pa.ipc.new_stream(self._sink, schema)
        self.rows = self.bytes = 0

    def add(self, batch: pa.RecordBatch, size: int) -> None:
        """Add rows of about that size."""
        self._writer.write_batch(batch)
        self.rows += batch.num_rows
        self.bytes += size

    def message(self) -> bytes:
        """The stream; nothing can be added any more."""
        self._writer.close()
        content: bytes = self._sink.getvalue().to_pybytes()
        return content


def _texts(file: pq.ParquetFile) -> list[str]:
    """The columns of texts that Arrow can and should read without copying equal values.

    Not those of images: each batch would come with all values of its row group.
    """
    leaves = [file.schema.column(index) for index in range(len(file.schema))]
    texts = {leaf.path: index for index, leaf in enumerate(leaves)
             if leaf.physical_type == "BYTE_ARRAY"}  # fmt: skip
    for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
        for path, index in list(texts.items()):
            column = group.column(index)
            is_large = column.total_uncompressed_size > LARGE_VALUE * max(1, column.num_values)
            if is_large or any(name.startswith("DELTA") for name in column.encodings):
                del texts[path]
    return list(texts)


def _check_sizes(metadata: pq.FileMetaData, max_bytes: int) -> None:
    """Refuse columns that are too large by the file's own account.

    Raises:
        ValueError: a column of a row group is too large.
    """
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if column.total_uncompressed_size > max_bytes:
                raise ValueError(
                    f"a row group unpacks to {column.total_uncompressed_size:,} bytes in column "
                    f"{column.path_in_schema[:200]!r}; at most {max_bytes:,} are allowed, so write "
                    "the table with smaller row groups"
                )


def _rows_per_block(metadata: pq.FileMetaData, limits: dict[str, Any]) -> int:
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    widest = max((g.total_byte_size / max(g.num_rows, 1) for g in groups), default=1.0)
    rows = min(limits["block_rows"], limits["block_cells"] // max(metadata.num_columns, 1))
    return max(1, min(rows, int(limits["block_bytes"] / max(widest, 1.0))))


def _split(batch: pa.RecordBatch, max_bytes: int) -> Iterator[pa.RecordBatch]:
    """Slices of a batch that need no more memory than that, unless they are a single row."""
    if batch.num_rows <= 1 or _size(batch) <= max_bytes:
        yield batch
        return
    half = batch.num_rows // 2
    yield from _split(batch.slice(0, half), max_bytes)
    yield from _split(batch.slice(half), max_bytes)


def _size(batch: pa.RecordBatch) -> int:
    return sum(map(_decoded_bytes, batch.columns))


def _decoded_bytes(column: pa.Array) -> int:
    """About the memory that the values of a column need once dictionaries are decoded."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_dictionary(kind):
        lengths = pc.binary_length(column.dictionary).cast(pa.int64()).take(column.indices)
        return 4 * len(column) + (pc.sum(lengths).as_py() or 0)
    if pa.types.is_struct(kind):
        return sum(_decoded_bytes(column.field(index)) for index in range(kind.num_fields))
    if pa.types.is_map(kind):
        first, last = column.offsets[0].as_py(), column.offsets[-1].as_py()
        items = (column.keys, column.items)
        return 8 * len(column) + sum(_decoded_bytes(i.slice(first, last - first)) for i in items)
    if pa.types.is_nested(kind) and kind.num_fields == 1:
        return 8 * len(column) + _decoded_bytes(column.flatten())
    return int(column.nbytes)
