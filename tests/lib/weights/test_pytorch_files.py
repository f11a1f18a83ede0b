"""Tensors of PyTorch checkpoints are the same as those that torch reads."""

from __future__ import annotations

import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rudalle_lib.errors import WeightsError
from rudalle_lib.weights import pytorch_files
from rudalle_lib.weights.checkpoints import list_tensors
from rudalle_lib.weights.conversion import safe_file
from rudalle_lib.weights.pickles import CodeError, PickleError
from rudalle_lib.weights.pytorch_files import checkpoint_tensors
from tests.support.limited_process import call_limited

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64,
]  # fmt: skip


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Tensors of any type, shape, offset and strides."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    base = torch.rand([size * 2 + 1 for size in shape]) * 100
    base = base.to(draw(st.sampled_from(DTYPES)))
    for dimension, size in enumerate(shape):
        step = draw(st.integers(1, 2))
        base = base.narrow(dimension, draw(st.integers(0, 1)), size * step)
        base = base[(slice(None),) * dimension + (slice(None, None, step),)]
    order = draw(st.permutations(range(len(shape))))
    return base.permute(order) if shape else base


@pytest.mark.parametrize("zipped", [True, False])
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(found=st.dictionaries(st.text("abc.", min_size=1, max_size=4), tensors(), min_size=1))
def test_all_tensors_are_those_of_torch(
    zipped: bool, found: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    first = next(iter(found))
    content = {**found, "tied": found[first], "parameter": torch.nn.Parameter(torch.rand(3))}
    torch.save({"state_dict": content}, path, _use_new_zipfile_serialization=zipped)
    expected = torch.load(path, weights_only=True)["state_dict"]
    lazy = checkpoint_tensors(path)
    assert lazy.keys() == expected.keys()
    for name, tensor in lazy.items():
        assert torch.equal(tensor.read(), expected[name])
        assert (tensor.dtype, tensor.shape) == (expected[name].dtype, expected[name].shape)
        pieces = b"".join(bytes(piece) for piece in tensor.pieces(7))
        whole = torch.empty(tensor.shape.numel(), dtype=tensor.dtype)
        whole.copy_(expected[name].reshape(-1))
        assert pieces == (bytes(whole.view(torch.uint8).numpy()) if whole.numel() else b"")


def test_new_types_and_untyped_storages(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    state = {"a": torch.arange(5).to(torch.uint16)[1:], "b": torch.rand(6).to(torch.float8_e5m2)}
    torch.save(state, path)
    found = checkpoint_tensors(path)
    for name, tensor in state.items():
        assert found[name].dtype is tensor.dtype
        assert torch.equal(found[name].read().view(torch.uint8), tensor.view(torch.uint8))


def rewrite(
    path: Path, change: Callable[[dict[str, bytes]], object], compression: int = zipfile.ZIP_STORED
) -> None:
    """Change the parts of a zip archive."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    torch.save({"a": torch.arange(1000.0), "b": torch.arange(1000)}, path)
    return path


def test_a_compressed_archive_is_an_error(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda parts: None)
    assert checkpoint_tensors(checkpoint)["a"].read().equal(torch.arange(1000.0))
    rewrite(checkpoint, lambda parts: None, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(PickleError, match="its parts are compressed"):
        checkpoint_tensors(checkpoint)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda parts: parts.pop("model/data.pkl"), "a zip archive without tensors"),
        (lambda parts: parts.pop("model/data/1"), "lacks elements"),
        (lambda parts: parts.update({"model/data/1": b"x"}), "lacks elements"),
        (lambda parts: parts.update({"model/byteorder": b"big"}), "big-endian"),
        (lambda parts: parts.update({"model/constants.pkl": b""}), "TorchScript program"),
        (lambda parts: parts.update({"model/data.pkl": b"x"}), "unknown instruction 0x78"),
        (lambda parts: parts.update({"model/data.pkl": b"}."}), "a dict, expected named tensors"),
        (lambda parts: parts.update({"model/data.pkl": bytes(5_000_000)}), "at most 2,097,152"),
    ],
)
def test_a_broken_archive_is_an_error(
    checkpoint: Path, change: Callable[[dict[str, bytes]], object], reason: str
) -> None:
    rewrite(checkpoint, change)
    with pytest.raises(PickleError, match=reason):
        checkpoint_tensors(checkpoint)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_an_error_wherever_it_ends(tmp_path: Path, zipped: bool) -> None:
    whole, path = tmp_path / "whole.pt", tmp_path / "cut.pt"
    torch.save({"a": torch.rand(99)}, whole, _use_new_zipfile_serialization=zipped)
    content = whole.read_bytes()
    for length in range(0, len(content), 13):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError, match="cut.pt is not a readable PyTorch checkpoint"):
            list_tensors(path)


def test_a_file_that_shrinks_is_an_error(checkpoint: Path) -> None:
    tensor = checkpoint_tensors(checkpoint)["b"]
    checkpoint.write_bytes(checkpoint.read_bytes()[: tensor.position + 8])
    for read in (tensor.read, lambda: list(tensor.pieces(2**20))):
        with pytest.raises(PickleError, match="it is truncated"):
            read()


SMALL = {"a": torch.arange(6.0), "b": {"c": [torch.ones(2, 2).half()]}, "n": 3}


@pytest.mark.parametrize("zipped", [True, False])
@settings(deadline=20_000, max_examples=150, suppress_health_check=[
    HealthCheck.function_scoped_fixture])  # fmt: skip
@given(data=st.data())
def test_a_damaged_file_is_a_list_of_tensors_or_a_pickle_error(
    zipped: bool, data: st.DataObject, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    torch.save({"params": {"a": SMALL["a"]}}, path, _use_new_zipfile_serialization=zipped)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        size = data.draw(st.integers(0, 4))
        content[position : position + size] = data.draw(st.binary(max_size=5))
    path.write_bytes(content)
    try:
        for tensor in checkpoint_tensors(path).values():
            tensor.read()
    except (PickleError, CodeError) as error:
        assert len(str(error)) < 400


# --- bombs -------------------------------------------------------------------------------------


def repeated(path: Path) -> None:
    """2,281 bytes that are 3.2 GB as safetensors: a number, repeated by a stride of 0."""
    torch.save({"weight": torch.zeros(1).expand(800_000_000)}, path)


def overlapping(path: Path) -> None:
    base = torch.zeros(100_000)
    torch.save({f"w{number}": base[number:] for number in range(5_000)}, path)


def windows(path: Path) -> None:
    torch.save({"weight": torch.zeros(100_000).unfold(0, 50_000, 1)}, path)


def overlapping_in_the_old_format(path: Path) -> None:
    torch.save({"weight": torch.zeros(9).expand(10**8, 9)}, path,
               _use_new_zipfile_serialization=False)  # fmt: skip


def compressed(path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(2**28))


def overlapping_parts(path: Path) -> None:
    """A zip archive whose 3,000 entries are one part of a megabyte, as in Fifield's bombs."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", bytes(2**20))
        info = archive.infolist()[0]
        for number in range(1, 3_000):
            copy = zipfile.ZipInfo(f"archive/data/{number}")
            copy.header_offset, copy.CRC = info.header_offset, info.CRC
            copy.file_size = copy.compress_size = info.file_size
            archive.filelist.append(copy)
        archive.comment = b"changed"


def many_entries(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"}.")
        for number in range(200_000):
            info = zipfile.ZipInfo(str(number))
            info.header_offset = info.CRC = 0
            archive.filelist.append(info)
        archive.comment = b"changed"


def lying_directory(path: Path) -> None:
    """An archive that claims a directory of 4 GB."""
    torch.save({"a": torch.zeros(3)}, path)
    with path.open("ab") as file:
        file.truncate(2**32)  # zeros that take no space
        file.seek(0, 2)
        file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 9, 9, 2**32 - 9, 0, 0))


def many_names(path: Path) -> None:
    tensor = torch.zeros(1)
    torch.save({f"weight{number}": tensor for number in range(40_000)}, path)


def nested_tuples(path: Path) -> None:
    """A tuple of a tuple of a tuple ... twice each."""
    torch.save({"a": torch.zeros(1)}, path)
    state = b"X\5\0\0\0stateK\1" + b"q\x20h\x20\x86" * 500 + b"s."

    def add(parts: dict[str, bytes]) -> None:
        parts["model/data.pkl"] = parts["model/data.pkl"][:-1] + state

    rewrite(path, add)


def nested_dictionaries(path: Path) -> None:
    content: dict[str, object] = {"a": torch.zeros(1)}
    for _ in range(100):
        content = {"state_dict": content, "params": content}
    torch.save(content, path)


def long_names(path: Path) -> None:
    torch.save({"x" * 1_000_000 + str(number): number for number in range(1)}, path)


BOMBS: list[tuple[Callable[[Path], None], str | None]] = [
    (repeated, "tensors have 3,200,000,000 bytes, but the file has"),
    (overlapping, "tensors overlap"),
    (windows, "tensors overlap"),
    (overlapping_in_the_old_format, "tensors overlap, or repeat"),
    (compressed, "its parts are compressed"),
    (overlapping_parts, "its parts together are larger than the file"),
    (many_entries, "its directory has"),
    (lying_directory, "its directory has 4,294,967,287 bytes"),
    (many_names, None),
    (nested_tuples, "values that are not tensors: state"),
    (nested_dictionaries, "values that are not tensors"),
    (long_names, r"not tensors: x{100}\.\.\."),
]


def convert_limited(path: str) -> str:
    return str(safe_file(Path(path)))


@pytest.mark.parametrize(("make", "reason"), BOMBS, ids=[make.__name__ for make, _ in BOMBS])
def test_a_bomb_is_one_sentence(
    make: Callable[[Path], None],
    reason: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "model.bin"
    make(path)
    found = call_limited(convert_limited, str(path))
    assert found.seconds < 20 and found.megabytes < 500
    others = [file for file in tmp_path.rglob("*") if file.is_file() and file != path]
    if reason is None:
        assert found.error is None
        assert sum(file.stat().st_size for file in others) < 10 * path.stat().st_size
    else:
        assert found.error is not None and re.search(reason, found.error)
        assert len(found.error) < 1_000 and others == []


def test_tied_weights_are_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, shared = tmp_path / "model.bin", torch.rand(500, 999)
    torch.save({name: shared for name in ("a", "b", "c", "d")}, path)
    monkeypatch.setattr(pytorch_files, "FREE_BYTES", 0)
    assert all(tensor.read().equal(shared) for tensor in checkpoint_tensors(path).values())
    torch.save({name: shared for name in ("a", "b", "c", "d", "e")}, path)
    with pytest.raises(PickleError, match="tensors overlap"):
        checkpoint_tensors(path)
