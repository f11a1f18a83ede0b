"""Weights files are read without running code, normalised, and matched key by key."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from rudalle_lib.errors import WeightsError
from rudalle_lib.weights.checkpoints import (
    build,
    list_tensors,
    load_state_dict,
    without_loss,
    without_masks,
)
from tests.support.limited_process import call_limited

CPU = torch.device("cpu")


def make() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.rand_like(tensor.float()).to(tensor.dtype)
            for name, tensor in make().state_dict().items()}  # fmt: skip


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("form", ["bare", "state_dict", "params", "params_ema", "module", "old"])
def test_all_published_formats_contain_the_same_tensors(
    state: dict[str, Tensor], tmp_path: Path, form: str
) -> None:
    path = tmp_path / "weights.bin"
    contents: dict[str, Any] = {
        "state_dict": {"epoch": 3, "state_dict": OrderedDict(state)},
        "params": {"params": state, "params_ema": {"other": torch.zeros(1)}},
        "params_ema": {"params_ema": state},
        "module": {f"module.module.{name}": tensor for name, tensor in state.items()},
    }
    torch.save(contents.get(form, state), path, _use_new_zipfile_serialization=form != "old")
    assert_equal(load_state_dict(path), state)


def test_safetensors_contain_the_same_tensors(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "model.safetensors")
    assert_equal(load_state_dict(tmp_path / "model.safetensors"), state)


class Malicious:
    """Unpickling this calls a function that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_rejected(tmp_path: Path, zipped: bool) -> None:
    trace = tmp_path / "executed"
    path = tmp_path / "pytorch_model.bin"
    content = {"weight": torch.zeros(2), "extra": Malicious(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="did not load .*pytorch_model.bin.*run code"):
        load_state_dict(path)
    assert not trace.exists()
    # The file must be dangerous, otherwise this test proves nothing.
    torch.load(path, weights_only=False)["extra"].close()
    assert trace.exists()


@pytest.mark.parametrize("function", ["builtins\neval", "posix\nsystem", "os\nsystem", "nt\nx"])
def test_a_bare_pickle_that_would_run_code_is_rejected(tmp_path: Path, function: str) -> None:
    path, trace = tmp_path / "model.pth", tmp_path / "executed"
    command = f"touch {trace}" if "system" in function else f"open({str(trace)!r}, 'w')"
    path.write_bytes(f"c{function}\n(V{command}\ntR.".encode())
    with pytest.raises(WeightsError, match="did not load .*model.pth"):
        load_state_dict(path)
    assert not trace.exists()


def test_the_bare_pickle_of_the_test_above_is_dangerous(tmp_path: Path) -> None:
    pickle.loads(f"cbuiltins\neval\n(Vopen('{tmp_path}/executed', 'w').close()\ntR.".encode())
    assert (tmp_path / "executed").exists()


def truncated_zip(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize("name", ["weights.bin", "model.safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\0" * 99, b"PK\x03\x04", None],
    ids=["empty", "lfs pointer", "zeros", "start of a zip", "truncated zip"],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is None:
        truncated_zip(path)
    else:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"{name} is not a readable"):
        load_state_dict(path)


POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
OTHER_FILES = {
    "empty": (b"", "it is empty, delete it and download it again"),
    "pointer": (POINTER, "it is a Git LFS pointer, .*`git lfs pull` in its folder"),
    "page": (b"<!DOCTYPE html><title>Sign in</title>", "it is an HTML page, .*signed in"),
    "old page": (b"\r\n<html><body>404 Not Found", "it is an HTML page"),
    "answer": (b'{"error":"Repository not found"}', "it is JSON, probably the answer of a server"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied', "it is an XML document, probably"),
    "text": (b"Invalid username or password.", "it is text, probably the answer of a server"),
    "call": (b"call us\nif this does not work\n", "it is text, probably the answer of a server"),
    "gzip": (b"\x1f\x8b\x08" + bytes(99), "it is a gzip archive"),
    "image": (b"\x89PNG\r\n\x1a\n" + bytes(99), "it is a PNG image"),
    "other model": (b"GGUF" + bytes(99), "it is a GGUF model"),
    "zeros": (bytes(5000), "it is nothing but zeros"),
}
"""What is often found in place of weights, and what is said about it."""


@pytest.mark.parametrize("name", ["weights.bin", "weights.pth", "model.safetensors"])
@pytest.mark.parametrize("other", OTHER_FILES)
def test_another_file_is_named_with_advice(tmp_path: Path, name: str, other: str) -> None:
    content, words = OTHER_FILES[other]
    (tmp_path / name).write_bytes(content)
    for read in (load_state_dict, list_tensors):
        with pytest.raises(WeightsError, match=f"{name} is not a readable .*: {words}") as raised:
            read(tmp_path / name)
        assert "weights_only" not in str(raised.value) and "\n" not in str(raised.value)


def test_formats_with_the_ending_of_the_other_are_named(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    save_file(state, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(tmp_path / "a.bin")
    with pytest.raises(WeightsError, match=r"it is a safetensors file; give it the ending \.safe"):
        list_tensors(tmp_path / "a.bin")
    torch.save(state, tmp_path / "b.safetensors")
    with pytest.raises(WeightsError, match="it is a zip archive"):
        list_tensors(tmp_path / "b.safetensors")
    torch.save(state, tmp_path / "b.safetensors", _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match="it does not begin with a header"):
        list_tensors(tmp_path / "b.safetensors")


@pytest.mark.parametrize("kind", ["loop", "broken link", "folder", "pipe"])
@pytest.mark.parametrize("name", ["weights.bin", "model.safetensors"])
def test_what_is_not_a_file_is_an_error_at_once(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "loop" else tmp_path / "absent")
    with pytest.raises(WeightsError, match=f"no weights file .*{name}"):
        list_tensors(path)


def header(content: dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


LYING_HEADERS = {
    "too long": header({}, length=2**40),
    "huge": header({"a": {}}, b" " * 20_000_000, length=20_000_000),
    "past the end": header({"a": {"dtype": "F32", "shape": [99], "data_offsets": [0, 396]}}),
    "of another shape": header(
        {"a": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4]}}, bytes(4)),
    "overflowing": header(
        {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}, bytes(4)),
    "negative": header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
    "backwards": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)),
    "overlapping": header(
        {name: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for name in "abcdef"},
        bytes(4)),
    "of an unknown type": header(
        {"a": {"dtype": "X1", "shape": [4], "data_offsets": [0, 4]}}, bytes(4)),
    "with a hole": header({"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}, bytes(8)),
    "without tensors": header({"a": 5}),
    "nested": struct.pack("<Q", 200_000) + b'{"a":' + b"[" * 199_995,
}  # fmt: skip


def read_limited(path: str) -> int:
    return len(load_state_dict(Path(path)))


@pytest.mark.parametrize("kind", LYING_HEADERS)
def test_a_safetensors_header_that_lies_is_one_sentence(tmp_path: Path, kind: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(LYING_HEADERS[kind])
    found = call_limited(read_limited, str(tmp_path / "model.safetensors"))
    assert found.error is not None and "is not a readable safetensors file" in found.error
    assert found.megabytes < 100 and found.seconds < 5 and len(found.error) < 500


def test_many_names_take_little_memory(tmp_path: Path) -> None:
    names = {f"{n}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(60_000)}
    path = tmp_path / "model.safetensors"
    path.write_bytes(header(names))
    assert path.stat().st_size < 4 * 2**20
    found = call_limited(list_limited, str(path))
    assert found.value == 60_000 and found.megabytes < 300 and found.seconds < 20


def list_limited(path: str) -> int:
    return len(list_tensors(Path(path)))


@settings(deadline=20_000, max_examples=100)
@given(data=st.data())
def test_a_damaged_safetensors_file_is_read_or_an_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    whole = header({"a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}}, bytes(8))
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position : position + data.draw(st.integers(0, 4))] = data.draw(
            st.binary(max_size=5)
        )
    path.write_bytes(content)
    try:
        for tensor in list_tensors(path).values():
            tensor.read()
    except WeightsError as error:
        assert len(str(error)) < 500


def test_a_safetensors_header_with_a_wrong_size_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        load_state_dict(path)


def test_a_file_without_tensors_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    for content, reason in (
        ([1, 2], "contains a list, expected named tensors"),
        ({}, "expected named tensors"),
        ({"a": torch.zeros(1), "epoch": 3}, "not tensors: epoch; expected a state dict"),
    ):
        torch.save(content, path)
        with pytest.raises(WeightsError, match=reason):
            load_state_dict(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights file .*absent.bin"):
        load_state_dict(tmp_path / "absent.bin")


def test_masks_of_decoders_and_losses_of_vqgans_are_dropped() -> None:
    one = torch.zeros(1)
    masks = {f"transformer.{kind}_mask": one for kind in ("row", "col", "conv")}
    assert without_masks({**masks, "text_embeddings.weight": one}).keys() == {
        "text_embeddings.weight"
    }
    trained = {"encoder.conv_in.weight": one, "loss.discriminator.main.0.weight": one}
    assert without_loss(trained).keys() == {"encoder.conv_in.weight"}
    wrapped = {"model.encoder.conv_in.weight": one, "model.quantize.proj.bias": one}
    assert without_loss(wrapped).keys() == {"encoder.conv_in.weight", "quantize.proj.bias"}


def test_a_built_network_has_the_tensors_in_the_requested_dtype(state: dict[str, Tensor]) -> None:
    network = build(make, dict(state), Path("x"), CPU, torch.bfloat16)
    found = network.state_dict()
    assert_equal(found, {name: tensor.to(found[name].dtype) for name, tensor in state.items()})
    assert found["0.weight"].dtype is torch.bfloat16
    assert found["1.num_batches_tracked"].dtype is torch.int64
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_mismatches_are_listed_with_both_shapes(state: dict[str, Tensor]) -> None:
    state["0.weight"] = torch.zeros(4, 5)
    state["2.weight"] = state.pop("0.bias")
    with pytest.raises(WeightsError) as caught:
        build(make, state, Path("weights.bin"), CPU, torch.float32)
    message = str(caught.value)
    assert "weights.bin does not fit its network" in message
    assert "1 keys missing: 0.bias [4]" in message
    assert "1 keys unexpected: 2.weight [4]" in message
    assert "1 keys of another shape: 0.weight: expected [4, 3], found [4, 5]" in message


def test_long_lists_of_keys_are_shortened() -> None:
    with pytest.raises(WeightsError, match=r"20 keys unexpected: .* and 12 more\."):
        build(nn.Identity, {f"k{i}": torch.zeros(1) for i in range(20)}, Path("x"), CPU,
              torch.float32)  # fmt: skip
