"""Pickles of checkpoints are read by a machine that calls nothing and whose work is bounded."""

from __future__ import annotations

import collections
import contextlib
import io
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rudalle_lib.weights.pickles import (
    MAX_PICKLE_BYTES,
    CodeError,
    Named,
    PickledTensor,
    PickleError,
    read_pickle,
)
from tests.support.limited_process import call_limited

PLAIN = (
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
)  # fmt: skip
TREES = st.recursive(
    PLAIN,
    lambda below: (
        st.lists(below, max_size=5)
        | st.lists(below, max_size=5).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), below, max_size=5)
    ),
    max_leaves=30,
)


def read(data: bytes) -> Any:
    return read_pickle(io.BytesIO(data))[0]


def pickled(content: object, path: Path) -> bytes:
    """The pickle in a file of `torch.save`."""
    torch.save(content, path)
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


@settings(deadline=None)
@given(TREES)
def test_plain_values_are_those_of_python(tree: object) -> None:
    assert read(pickle.dumps(tree, protocol=2)) == tree


def test_shared_and_circular_values_are_kept() -> None:
    shared = [1]
    found = read(pickle.dumps([shared, shared], protocol=2))
    assert found[0] is found[1]
    circle: list[object] = []
    circle.append(circle)
    found = read(pickle.dumps(circle, protocol=2))
    assert found[0] is found


def test_tensors_are_described(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    parts = {"a": base[1:, ::2], "b": torch.nn.Parameter(base.half())}
    content: collections.OrderedDict[str, Any] = collections.OrderedDict(parts)
    content["_metadata"] = {"version": 1}
    found = read(pickled(content, tmp_path / "x.pt"))
    tensor = found["a"]
    assert isinstance(tensor, PickledTensor)
    assert (tensor.dtype, tensor.shape, tensor.stride) == (torch.float32, (2, 2), (4, 2))
    assert (tensor.offset, tensor.numel, tensor.span) == (16, 4, 7)
    assert found["b"].dtype is torch.float16 and found["b"].is_contiguous


@pytest.mark.parametrize(
    "content",
    [torch.device("cpu"), torch.Size([1]), torch.float32, b"bytes", {1, 2}, 1 + 2j, bytearray(3)],
)
def test_what_is_not_needed_is_ignored(content: object, tmp_path: Path) -> None:
    assert isinstance(read(pickled({"x": content}, tmp_path / "x.pt"))["x"], Named)


@pytest.mark.parametrize(
    "name",
    [
        "os system", "posix system", "nt system", "builtins eval", "builtins exec",
        "builtins getattr", "subprocess Popen", "torch load", "torch.hub load",
        "torch.serialization load", "torch._utils _import_dotted_name", "runpy run_path",
        "numpy load", "rudalle_lib.weights.pickles read_pickle", "__builtin__ eval",
        "torch FloatTensor", "collections namedtuple",
    ],
)  # fmt: skip
def test_functions_that_checkpoints_do_not_need_are_errors_even_if_not_called(name: str) -> None:
    module, function = name.split()
    with pytest.raises(CodeError) as raised:
        read(f"c{module}\n{function}\n.".encode())
    assert function in str(raised.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80", b"\x80\x02", b".", b"a.", b"(.", b"t.", b"u.", b"}s.", b"h\x07.", b"R.",
     b"K\x01K\x02R.", b"K\x01)R.", b"ctorch\nSize\nK\x01R.", b"K\x01Q.", b"(K\x01tQ.", b"b.", b"0.",
     b"X\xff\xff\xff\xff.", b"X\x01\0\0\0\xff.", b"\x8a\xffx", b"}K\x01s.", b"]K\x01K\x02s.",
     b"\x95" + bytes(8), b"S'text'\n.", b"cno newline", b"c\xff\n\xff\n.", b"cx y\nz\n."],
)  # fmt: skip
def test_damaged_pickles_are_errors(data: bytes) -> None:
    with pytest.raises(PickleError, match="pickle|storage"):
        read(data)


STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpuK\x10tQ"
"""A storage of 16 floats."""


def rebuilt(offset: int, shape: list[int], stride: list[int]) -> bytes:
    def integers(values: list[int]) -> bytes:
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"

    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + integers([offset])[1:-1]
        + integers(shape) + integers(stride) + b"\x89}tR."
    )  # fmt: skip


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (0, [17], [1]), (1, [16], [1]), (-1, [2], [1]), (0, [-2], [1]), (0, [2], [-1]),
        (0, [2, 2], [1]), (0, [2], [2**62]), (0, [2**62], [0]), (0, [1] * 17, [1] * 17),
        (2**40, [1], [1]), (0, [4, 5], [4, 1]),
    ],
)  # fmt: skip
def test_tensors_outside_of_their_storage_are_errors(
    offset: int, shape: list[int], stride: list[int]
) -> None:
    assert read(rebuilt(0, [4, 4], [4, 1])).is_contiguous
    with pytest.raises(PickleError, match="describes a tensor"):
        read(rebuilt(offset, shape, stride))


@settings(deadline=20_000, max_examples=150)
@given(st.data())
def test_a_damaged_pickle_is_a_value_or_a_pickle_error(data: st.DataObject) -> None:
    whole = rebuilt(0, [4, 4], [4, 1])[:-1] + b"}X\1\0\0\0a]K\1asr."
    broken = bytearray(data.draw(st.sampled_from([whole, pickle.dumps([{"a": (1,)}] * 3, 2)])))
    for _ in range(data.draw(st.integers(1, 5))):
        position = data.draw(st.integers(0, len(broken) - 1))
        broken[position : position + data.draw(st.integers(0, 3))] = data.draw(
            st.binary(max_size=4)
        )
    try:
        read(bytes(broken))
    except PickleError as error:
        assert len(str(error)) < 300


INSTRUCTIONS = st.sampled_from([op.code.encode("latin1") for op in pickletools.opcodes])


@settings(deadline=20_000, max_examples=150)
@given(st.lists(INSTRUCTIONS | st.binary(max_size=3), max_size=40).map(b"".join))
def test_any_program_ends(data: bytes) -> None:
    with contextlib.suppress(PickleError):
        read(data + b".")


def read_limited(data: bytes) -> str:
    try:
        return type(read(data)).__name__
    except PickleError as error:
        return str(error)


NESTED = b"K\x01" + b"q\x00h\x00\x86" * 60
"""A tuple of a tuple of a tuple ... twice each: 2**60 numbers in 300 bytes."""


@pytest.mark.parametrize(
    ("data", "result"),
    [
        (b"}" + NESTED + b"K\x01s.", "it has a dictionary with a key of type tuple"),
        (b"]" + NESTED + b"a.", "list"),
        (b"}" * MAX_PICKLE_BYTES, "its pickle is truncated"),
        (b"(" * MAX_PICKLE_BYTES, "its pickle is truncated"),
        (b"K\x01" + b"\x85" * MAX_PICKLE_BYTES + b".", "tuple"),
        (b"]" + b"]a" * (MAX_PICKLE_BYTES // 2) + b".", "list"),
        (b"]" + b"q\x00h\x00a" * (MAX_PICKLE_BYTES // 5) + b".", "list"),
        (b"cbuiltins\nbytearray\n\x8a\x06" + bytes(5) + b"\x7f\x85R.", "Named"),
    ],
    ids=["hash", "nested", "dictionaries", "marks", "deep", "lists", "circle", "bytearray"],
)
def test_a_bomb_takes_little_time_and_memory(data: bytes, result: str) -> None:
    found = call_limited(read_limited, data)
    assert found.value == result
    assert found.seconds < 10 and found.megabytes < 700
