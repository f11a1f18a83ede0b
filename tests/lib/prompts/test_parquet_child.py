"""The process that decodes Parquet: its messages, and how it divides what it has decoded."""

from __future__ import annotations

import socket
import threading

import pyarrow as pa
import pytest

from rudalle_lib.prompts import parquet_child
from rudalle_lib.prompts.parquet_child import OPEN, READ, _size, _split, part_of, receive, send


@pytest.mark.parametrize("content", [b"", b"x", bytes(3 * 2**20)])
def test_messages_arrive_whole(content: bytes) -> None:
    one, other = socket.socketpair()
    with one, other:
        sender = threading.Thread(target=send, args=(one, OPEN, content))
        sender.start()
        assert receive(other) == (OPEN, content)
        sender.join()


@pytest.mark.parametrize("sent", [b"", b"O", b"O\x05\0\0\0\0\0\0\0", b"O\x05\0\0\0\0\0\0\0abc"])
def test_a_process_that_ends_in_a_message_is_noticed(sent: bytes) -> None:
    one, other = socket.socketpair()
    with other:
        with one:
            one.sendall(sent)
        with pytest.raises(EOFError, match="the other process has ended"):
            receive(other)


def test_a_part_is_a_position_and_a_size() -> None:
    one, other = socket.socketpair()
    with one, other:
        send(one, READ, parquet_child._PART.pack(2**40, 7))
        kind, content = receive(other)
    assert kind == READ and part_of(content) == (2**40, 7)


def test_a_batch_is_divided_until_its_parts_are_small_and_loses_no_row() -> None:
    texts = ["x" * (10 * number) for number in range(50)]
    batch = pa.record_batch({"a": pa.array(texts)})
    parts = list(_split(batch, 600))
    assert pa.Table.from_batches(parts).to_pydict() == {"a": texts}
    assert all(part.num_rows == 1 or _size(part) <= 600 for part in parts)


@pytest.mark.parametrize(
    ("column", "at_least"),
    [
        (pa.DictionaryArray.from_arrays(pa.array([0] * 1000), pa.array(["x" * 100])), 100_000),
        (pa.array([{"a": "x" * 100}] * 10), 1000),
        (pa.array([["x" * 100]] * 10), 1000),
        (pa.array([[("k", "x" * 100)]] * 10, pa.map_(pa.string(), pa.string())), 1000),
    ],
)
def test_the_size_of_a_column_is_that_of_its_decoded_values(
    column: pa.Array, at_least: int
) -> None:
    """A dictionary of one long text with many indices is small until it is decoded."""
    assert parquet_child._decoded_bytes(column) >= at_least
