"""Checkpoints become safetensors once, are verified later, and cost little memory on the way."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rudalle_lib import conversion
from rudalle_lib.checkpoints import load_state_dict, stored_tensors
from rudalle_lib.conversion import safe_file
from rudalle_lib.errors import WeightsError
from rudalle_lib.weight_records import BESIDE, file_digest


@pytest.fixture
def state() -> dict[str, Tensor]:
    """Every type and the shapes that are easily got wrong."""
    torch.manual_seed(0)
    wide = torch.rand(4, 6)
    return {
        "flag": torch.tensor([True, False, True]),
        "half": torch.rand(3, 5).half(),
        "brain": torch.rand(7).bfloat16(),
        "transposed": wide.t(),
        "part": wide[1:3, ::2],
        "scalar": torch.tensor(3.5),
        "count": torch.tensor(2**40),
        "empty": torch.empty(0, 4),
        "eight": torch.tensor([-128, 127], dtype=torch.int8),
    }


@pytest.fixture
def checkpoint(tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "weights" / "pytorch_model.bin"
    path.parent.mkdir()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    return path


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype is expected[name].dtype
        assert torch.equal(found[name], expected[name])


@pytest.mark.parametrize("piece", [1, conversion.PIECE])
def test_a_copy_holds_the_same_tensors(
    checkpoint: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    """Read by the library of the format itself, and one by one."""
    monkeypatch.setattr(conversion, "PIECE", piece)
    copy = safe_file(checkpoint)
    assert copy == checkpoint.parent / BESIDE / "pytorch_model.bin.safetensors"
    assert_equal(load_file(copy), state)
    assert_equal({name: t.read() for name, t in stored_tensors(copy).items()}, state)


def test_safetensors_are_used_as_they_are(tmp_path: Path) -> None:
    assert safe_file(tmp_path / "model.safetensors") == tmp_path / "model.safetensors"


def test_the_second_use_takes_the_copy_and_the_digest_of_the_record(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert file_digest(checkpoint) == sha256
    copy = safe_file(checkpoint)
    monkeypatch.setattr(conversion, "convert", lambda path: pytest.fail("converted again"))
    monkeypatch.setattr("rudalle_lib.weight_records.hashed", lambda path: pytest.fail("hashed"))
    assert safe_file(checkpoint) == copy
    assert file_digest(checkpoint) == sha256


def test_a_copy_that_was_changed_is_made_again(checkpoint: Path, state: dict[str, Tensor]) -> None:
    copy = safe_file(checkpoint)
    good = copy.read_bytes()
    copy.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    os.utime(copy, ns=(1, 1))
    assert safe_file(checkpoint) == copy
    assert copy.read_bytes() == good


def test_a_checkpoint_that_was_changed_is_converted_again(checkpoint: Path) -> None:
    before = file_digest(checkpoint)
    safe_file(checkpoint)
    torch.save({"other": torch.ones(3)}, checkpoint)
    os.utime(checkpoint, ns=(1, 1))
    assert load_file(safe_file(checkpoint)).keys() == {"other"}
    assert file_digest(checkpoint) == hashlib.sha256(checkpoint.read_bytes()).hexdigest() != before


@pytest.mark.parametrize("record", ["", "[]", '{"size": 1}', "null"])
def test_a_broken_record_does_not_count(checkpoint: Path, record: str) -> None:
    copy = safe_file(checkpoint)
    path = copy.with_name("pytorch_model.bin.json")
    assert json.loads(path.read_text())["sha256"] == file_digest(checkpoint)
    path.write_text(record)
    assert safe_file(checkpoint) == copy
    assert json.loads(path.read_text())["size"] == checkpoint.stat().st_size


def test_copies_go_to_the_cache_where_the_folder_cannot_be_written(
    checkpoint: Path, tmp_path: Path, state: dict[str, Tensor]
) -> None:
    (checkpoint.parent / BESIDE).write_text("in the way")
    copy = safe_file(checkpoint)
    assert copy.is_relative_to(tmp_path / "cache" / "rudalle-flows")
    assert_equal(load_file(copy), state)
    assert safe_file(checkpoint) == copy


def test_without_any_room_the_error_says_what_to_do(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint.parent / BESIDE).write_text("in the way")
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(WeightsError, match="cannot write the safetensors copy .* XDG_CACHE_HOME"):
        safe_file(checkpoint)


def test_nothing_is_left_of_a_conversion_that_fails(checkpoint: Path) -> None:
    torch.save({"complex": torch.zeros(2, dtype=torch.complex64)}, checkpoint)
    with pytest.raises(WeightsError, match="complex is of type torch.complex64"):
        safe_file(checkpoint)
    assert list((checkpoint.parent / BESIDE).iterdir()) == []


def test_an_old_checkpoint_is_converted_too(checkpoint: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, checkpoint, _use_new_zipfile_serialization=False)
    assert_equal(load_file(safe_file(checkpoint)), state)
    assert_equal(load_state_dict(checkpoint), state)


LAYERS, WIDTH = 24, 2048
MEASURE = f"""
import sys
import torch
from pathlib import Path
from rudalle_lib.checkpoints import build, stored_tensors
from rudalle_lib.conversion import safe_file

torch.set_num_threads(1)
def peak():  # not getrusage's: that begins with the peak of the parent, which made the weights
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

def load(path, layers, width, dtype):
    def make():
        return torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(layers)))
    return build(make, stored_tensors(safe_file(path)), path, torch.device("cpu"), dtype)

path, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
small = path.with_name("small.bin")
torch.save(torch.nn.Sequential(torch.nn.Linear(4, 4)).state_dict(), small)
load(small, 1, 4, dtype)  # imports and first allocations are no part of the figure
before = peak()
model = load(path, {LAYERS}, {WIDTH}, dtype)
total = sum(float(p.float().sum()) if p.dim() < 2 else float(p.sum()) for p in model.parameters())
print((peak() - before) / sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_takes_little_more_memory_than_the_network(tmp_path: Path, dtype: str) -> None:
    """A checkpoint of 403 MB, first converted, then loaded: at most 1.2 times the network."""
    layers = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
    torch.save(torch.nn.Sequential(*layers).state_dict(), tmp_path / "model.bin")
    for use in ("first", "second"):
        command = [sys.executable, "-c", MEASURE, str(tmp_path / "model.bin"), dtype]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        ratio = float(done.stdout)
        print(f"\n{dtype}, {use} use: peak {ratio:.2f} times the weights")
        assert ratio < 1.2, f"{use} use: {ratio:.2f} times the weights"
