"""Checkpoints are converted to safetensors once, verified later, and loaded with little memory."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rudalle_lib.errors import WeightsError
from rudalle_lib.weights import conversion
from rudalle_lib.weights.checkpoints import load_state_dict, stored_tensors
from rudalle_lib.weights.conversion import safe_file
from rudalle_lib.weights.digest_cache import COPIES_FOLDER, file_digest


@pytest.fixture
def state() -> dict[str, Tensor]:
    """All types, and shapes that are easy to get wrong."""
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


@pytest.mark.parametrize("piece", [1, conversion.MAX_MAPPED_BYTES])
def test_a_copy_holds_the_same_tensors(
    checkpoint: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    """Read by the safetensors library at once, and one by one."""
    monkeypatch.setattr(conversion, "MAX_MAPPED_BYTES", piece)
    copy = safe_file(checkpoint)
    assert copy == checkpoint.parent / COPIES_FOLDER / "pytorch_model.bin.safetensors"
    assert_equal(load_file(copy), state)
    assert_equal({name: t.read() for name, t in stored_tensors(copy).items()}, state)


def test_safetensors_are_not_copied(tmp_path: Path) -> None:
    assert safe_file(tmp_path / "model.safetensors") == tmp_path / "model.safetensors"


def test_the_second_use_neither_converts_nor_hashes(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert file_digest(checkpoint) == sha256
    copy = safe_file(checkpoint)
    monkeypatch.setattr(conversion, "convert", lambda path: pytest.fail("converted again"))
    monkeypatch.setattr(
        "rudalle_lib.weights.digest_cache.hash_file", lambda path: pytest.fail("hashed")
    )
    assert safe_file(checkpoint) == copy
    assert file_digest(checkpoint) == sha256


def test_a_copy_that_was_changed_is_rewritten(checkpoint: Path, state: dict[str, Tensor]) -> None:
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


def test_copies_go_to_the_cache_if_the_folder_cannot_be_written(
    checkpoint: Path, tmp_path: Path, state: dict[str, Tensor]
) -> None:
    (checkpoint.parent / COPIES_FOLDER).write_text("in the way")
    copy = safe_file(checkpoint)
    assert copy.is_relative_to(tmp_path / "cache" / "rudalle-flows")
    assert_equal(load_file(copy), state)
    assert safe_file(checkpoint) == copy


def test_an_error_says_what_to_do_if_no_folder_can_be_written(
    checkpoint: Path, tmp_path: Path
) -> None:
    (checkpoint.parent / COPIES_FOLDER).write_text("in the way")
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(WeightsError, match="cannot write the safetensors copy .* XDG_CACHE_HOME"):
        safe_file(checkpoint)


def test_a_failed_conversion_leaves_no_files(checkpoint: Path) -> None:
    torch.save({"complex": torch.zeros(2, dtype=torch.complex64)}, checkpoint)
    with pytest.raises(WeightsError, match="complex is of type torch.complex64"):
        safe_file(checkpoint)
    assert list((checkpoint.parent / COPIES_FOLDER).iterdir()) == []


def test_a_checkpoint_in_the_old_format_is_converted(
    checkpoint: Path, state: dict[str, Tensor]
) -> None:
    torch.save(state, checkpoint, _use_new_zipfile_serialization=False)
    assert_equal(load_file(safe_file(checkpoint)), state)
    assert_equal(load_state_dict(checkpoint), state)


LAYERS, WIDTH = 24, 2048
MEASURE = f"""
import sys
import torch
from pathlib import Path
from rudalle_lib.weights.checkpoints import build, stored_tensors
from rudalle_lib.weights.conversion import safe_file

torch.set_num_threads(1)
def peak():  # getrusage would include the peak of the parent, which wrote the weights
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

def load(path, layers, width, dtype):
    def make():
        return torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(layers)))
    return build(make, stored_tensors(safe_file(path)), path, torch.device("cpu"), dtype)

path, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
small = path.with_name("small.bin")
torch.save(torch.nn.Sequential(torch.nn.Linear(4, 4)).state_dict(), small)
load(small, 1, 4, dtype)  # exclude imports and first allocations
before = peak()
model = load(path, {LAYERS}, {WIDTH}, dtype)
total = sum(float(p.float().sum()) if p.dim() < 2 else float(p.sum()) for p in model.parameters())
print((peak() - before) / sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_takes_little_more_memory_than_the_network(tmp_path: Path, dtype: str) -> None:
    """Converting and loading a checkpoint of 403 MB takes at most 1.2 times its size."""
    layers = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
    torch.save(torch.nn.Sequential(*layers).state_dict(), tmp_path / "model.bin")
    for use in ("first", "second"):
        command = [sys.executable, "-c", MEASURE, str(tmp_path / "model.bin"), dtype]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        ratio = float(done.stdout)
        print(f"\n{dtype}, {use} use: peak {ratio:.2f} times the weights")
        assert ratio < 1.2, f"{use} use: {ratio:.2f} times the weights"
