"""Reader of prompt tables in Parquet, which another process decodes.

The process has a limit on its memory and gets nothing but the bytes of the file, because Parquet
files can be made to unpack to any size, or to crash their reader. It answers within a time limit,
or is ended. It is kept for a few seconds, for the next table or the next part of this one.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from rudalle_lib.errors import PromptError
from rudalle_lib.prompts import blocks, parquet_child
from rudalle_lib.prompts.blocks import BadRow, Block, Columns, TableOptions, clean_names
from rudalle_lib.prompts.budgets import Budget
from rudalle_lib.prompts.column_types import unreadable_rows
from rudalle_lib.prompts.parquet_child import (
    CONTENT,
    END,
    FAILED,
    NEXT,
    OPEN,
    READ,
    TOO_LARGE,
    receive,
    send,
)

MAX_COLUMN_BYTES = 2**30
"""The largest uncompressed size of a column in one row group."""

MAX_ROW_BYTES = 16 * 2**20
"""The largest row that the process sends."""

SECONDS_PER_BLOCK = 20.0
"""How long the process may take for a block, without the time to read the file."""

SECONDS_KEPT = 5.0
"""How long an idle process is kept."""

KEPT_VARIABLES = ("PATH", "TMPDIR", "TZ", "TZDIR", "HOME", "SYSTEMROOT")
KEPT_PREFIXES = ("PYTHON", "LD_", "DYLD_", "LC_", "LANG", "VIRTUAL_ENV")
"""What the process gets of the environment: no credentials."""

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # stacks of threads count as memory
    "OPENBLAS_NUM_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # others reserve much more than they use
    "MALLOC_ARENA_MAX": "1",
}

_CODE = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from rudalle_lib.prompts.parquet_child import serve; serve()"
)


def read_parquet(
    stream: BinaryIO, name: str, options: TableOptions, budget: Budget
) -> Iterator[Block]:
    """Read a Parquet file.

    Args:
        stream: the file; it must be seekable.
        name: the file, for errors.
        options: how it is read.
        budget: rows and values are charged to it.

    Raises:
        PromptError: it is no Parquet file, unpacks to too much, has a column whose type cannot be
            stored, or no column of prompts.
    """
    size = stream.seek(0, os.SEEK_END)
    budget.feed(size)
    with _process() as process:
        description = process.open(stream, name, size, options)
        budget.check_rows(min(description["rows"], options.limit or description["rows"]))
        found: list[tuple[str, str, str | None]] = description["columns"]
        names = clean_names((column for column, _, _ in found), f"The prompt table {name}")
        columns = options.match(names)
        for column, (_, kind, why) in zip(names, found, strict=True):
            if why is not None:
                raise PromptError(
                    f"The column {column!r} of {name} holds {kind}, which {why}; write it as "
                    "another type, for example as text, or leave it out."
                )
        first = 1
        while (table := process.read_block(stream, name)) is not None:
            if table.num_columns == 0:  # a row that is too large
                detail = f"the row has more than {MAX_ROW_BYTES:,} bytes"
                yield Block([], {}, table, [BadRow(first, detail, "")])
                first += 1
                continue
            table = table.rename_columns(names).combine_chunks()
            budget.spend(table.nbytes, rows=table.num_rows, columns=len(names))
            if first == 1 and "prompt" in columns.names:
                _check_text(table.schema.field(columns.names["prompt"]), name)
            yield _block(table, columns, first, name)
            first += table.num_rows


# --- the process ---------------------------------------------------------------------------------


class _Process:
    """A process that decodes Parquet."""

    def __init__(self) -> None:
        self.timer: threading.Timer | None = None
        self._asked = False
        self._memory_bytes = parquet_child.MEMORY_BYTES
        self._connection, other = socket.socketpair()
        root = str(Path(__file__).parents[2])
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, root],
                stdin=other.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env=_environment(), start_new_session=True,  # Ctrl-C is for this process
            )  # fmt: skip

    def open(self, stream: BinaryIO, name: str, size: int, options: TableOptions) -> dict[str, Any]:
        """Open a file; return the number of its rows, and its columns."""
        self._memory_bytes = options.memory_bytes
        limits = {
            "memory_bytes": options.memory_bytes,
            "size": size,
            "column_bytes": MAX_COLUMN_BYTES,
            "block_rows": min(blocks.BLOCK_ROWS, options.limit or blocks.BLOCK_ROWS),
            "block_cells": blocks.BLOCK_CELLS,
            "block_bytes": blocks.BLOCK_BYTES,
            "row_bytes": MAX_ROW_BYTES,
        }
        _, content = self._ask(OPEN, json.dumps(limits).encode(), stream, name)
        description: dict[str, Any] = json.loads(content)
        return description

    def read_block(self, stream: BinaryIO, name: str) -> pa.Table | None:
        """The next rows; a table without columns for a row that is too large; None at the end."""
        kind, content = self._ask(NEXT, b"", stream, name)
        if kind == END:
            return None
        if kind == TOO_LARGE:
            return pa.table({})
        return pa.ipc.open_stream(content).read_all()

    def _ask(self, kind: bytes, content: bytes, stream: BinaryIO, name: str) -> tuple[bytes, bytes]:
        """Send a request, provide the parts of the file that it needs, and return the answer."""
        self._asked = True
        kind, content = self._exchange(kind, content, name)
        while kind == READ:
            position, size = parquet_child.part_of(content)
            stream.seek(position)  # errors of the storage pass as they are
            kind, content = self._exchange(CONTENT, stream.read(size), name)
        self._asked = False
        if kind == FAILED:
            raise _failure(content.decode(errors="replace"), name, self._memory_bytes)
        return kind, content

    def _exchange(self, kind: bytes, content: bytes, name: str) -> tuple[bytes, bytes]:
        """Send a message and receive the next one."""
        try:
            self._connection.settimeout(SECONDS_PER_BLOCK)
            send(self._connection, kind, content)
            return receive(self._connection)
        except TimeoutError:
            raise PromptError(
                f"The prompt table {name} takes more than {SECONDS_PER_BLOCK:.0f} s to unpack a "
                "few thousand rows; write it with smaller row groups."
            ) from None
        except (EOFError, ConnectionError):
            raise PromptError(
                f"The prompt table {name} is not readable as Parquet: unpacking it failed"
                f"{self._cause()}."
            ) from None

    def _cause(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(5)
            return f" (signal {-code})" if code < 0 else ""
        return ""

    @property
    def is_usable(self) -> bool:
        """Whether the process waits for a request."""
        return not self._asked and self._process.poll() is None

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.kill()
        self._process.wait()


def _failure(message: str, name: str, memory_bytes: int) -> PromptError:
    kind, _, text = message.partition(" ")
    if kind == "memory" or "malloc of size" in text or "realloc of size" in text:
        return PromptError(
            f"The prompt table {name} needs more than {memory_bytes:,} bytes of "
            "memory to unpack a few thousand rows; write it with smaller row groups."
        )
    return PromptError(f"The prompt table {name} is not readable as Parquet: {text.rstrip('.')}.")


def _environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT_VARIABLES or name.startswith(KEPT_PREFIXES)
    }
    return {**kept, **ENVIRONMENT}


_idle: list[_Process] = []
_lock = threading.Lock()


@contextlib.contextmanager
def _process() -> Iterator[_Process]:
    """A process for one table: an idle one, or a new one."""
    with _lock:
        process = _idle.pop() if _idle else None
    if process is not None and process.timer is not None:
        process.timer.cancel()
    if process is None or not process.is_usable:
        process = _Process()
    try:
        yield process
    finally:
        _keep(process)


def _keep(process: _Process) -> None:
    if not process.is_usable:
        process.close()
        return
    process.timer = threading.Timer(SECONDS_KEPT, _close_if_idle, [process])
    process.timer.daemon = True
    with _lock:
        _idle.append(process)
        process.timer.start()


def _close_if_idle(process: _Process) -> None:
    with _lock:
        if process not in _idle:
            return
        _idle.remove(process)
    process.close()


def _close_all() -> None:
    while _idle:
        _idle.pop().close()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # they belong to the parent


# --- blocks --------------------------------------------------------------------------------------


def _check_text(field: pa.Field, name: str) -> None:
    if not (_is_text(field.type) or _is_binary(field.type) or pa.types.is_null(field.type)):
        raise PromptError(
            f"The column {field.name!r} of {name} holds {field.type}, expected text; name the "
            "right one as prompts.columns.prompt."
        )


def _block(table: pa.Table, columns: Columns, first: int, name: str) -> Block:
    numbers: Sequence[int] = range(first, first + table.num_rows)
    extras = _with_valid_text(table.select(columns.others(table.column_names)), name)
    bad = _unreadable(extras, first)
    if bad:
        good = [place for place, number in enumerate(numbers) if number not in bad]
        table, extras = table.take(good), extras.take(good)
        numbers = [numbers[place] for place in good]
    values = {ours: _values(table.column(theirs)) for ours, theirs in columns.names.items()}
    return Block(numbers, values, extras, list(bad.values()))


def _unreadable(extras: pa.Table, first: int) -> Mapping[int, BadRow]:
    """Rows with values that Python cannot hold, by their numbers."""
    bad: dict[int, BadRow] = {}
    for column_name, column in zip(extras.column_names, extras.columns, strict=True):
        for place in unreadable_rows(column):
            detail = f"the column {column_name!r} holds a {column.type} out of range"
            bad.setdefault(first + place, BadRow(first + place, detail, ""))
    return bad


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Python values; text that is not valid UTF-8 stays bytes, so that its row is rejected."""
    if isinstance(column.type, pa.JsonType | pa.OpaqueType):
        column = pa.chunked_array(
            [chunk.storage for chunk in column.chunks], column.type.storage_type
        )
    if _is_text(column.type) and not _is_valid(column):
        return [_decode(value) for value in column.cast(pa.large_binary()).to_pylist()]
    if _is_binary(column.type):
        return [_decode(value) for value in column.to_pylist()]
    try:
        return list(column.to_pylist())
    except Exception:  # for example a date out of range
        return [_python_value(value) for value in column]


def _python_value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except Exception:
        return str(value)


def _decode(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value


def _with_valid_text(table: pa.Table, name: str) -> pa.Table:
    """The columns with every byte that is not valid UTF-8 replaced, so that they can be read."""
    for index, field in enumerate(table.schema):
        column = table.column(index)
        if _is_valid(column):
            continue
        if not _is_text(field.type):
            raise PromptError(f"The column {field.name!r} of {name} holds text that is not UTF-8.")
        texts = [
            None if value is None else value.decode(errors="replace")
            for value in column.cast(pa.large_binary()).to_pylist()
        ]
        table = table.set_column(index, field.name, pa.chunked_array([pa.array(texts, field.type)]))
    return table


def _is_valid(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
