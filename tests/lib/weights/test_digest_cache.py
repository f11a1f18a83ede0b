"""Digests of weights files come from records, as long as these are valid."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from rudalle_lib.weights.conversion import safe_file
from rudalle_lib.weights.digest_cache import (
    COPIES_FOLDER,
    Record,
    copy_folders,
    file_digest,
    find_record,
    hash_file,
    record_path,
)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "weights" / "pytorch_model.bin"
    path.parent.mkdir()
    torch.save({"weight": torch.ones(3)}, path)
    return path


def write_record(checkpoint: Path, folder: Path, sha256: str) -> None:
    status = checkpoint.stat()
    record = Record(status.st_size, status.st_mtime_ns, sha256, "copy")
    folder.mkdir(parents=True)
    record_path(folder, checkpoint).write_text(record.to_json())


def test_a_recorded_digest_is_used_in_either_folder(checkpoint: Path, tmp_path: Path) -> None:
    beside, cache = copy_folders(checkpoint)
    assert beside == checkpoint.parent / COPIES_FOLDER
    assert cache.is_relative_to(tmp_path / "cache" / "rudalle-flows" / "weights")
    assert find_record(checkpoint) is None
    write_record(checkpoint, cache, "from the cache")
    assert file_digest(checkpoint) == "from the cache"
    write_record(checkpoint, beside, "from beside")
    assert file_digest(checkpoint) == "from beside"


def test_folders_of_equal_names_have_their_own_place_in_the_cache(tmp_path: Path) -> None:
    one, two = (copy_folders(tmp_path / name / "w" / "model.bin")[1] for name in "ab")
    assert one != two


def test_a_user_without_a_home_has_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    assert copy_folders(tmp_path / "model.bin") == (tmp_path / COPIES_FOLDER,)


@pytest.mark.parametrize("content", [b"other", b"12345"])
def test_a_record_of_another_size_or_time_is_not_valid(checkpoint: Path, content: bytes) -> None:
    checkpoint.write_bytes(b"12345")
    write_record(checkpoint, checkpoint.parent / COPIES_FOLDER, "recorded")
    assert file_digest(checkpoint) == "recorded"
    checkpoint.write_bytes(content)
    os.utime(checkpoint, ns=(1, 1))
    assert file_digest(checkpoint) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("record", ["", "[]", '{"size": 1}', "null"])
def test_a_broken_record_is_not_valid(checkpoint: Path, record: str) -> None:
    copy = safe_file(checkpoint)
    path = copy.with_name("pytorch_model.bin.json")
    assert json.loads(path.read_text())["sha256"] == file_digest(checkpoint)
    path.write_text(record)
    assert find_record(checkpoint) is None
    assert safe_file(checkpoint) == copy
    assert json.loads(path.read_text())["size"] == checkpoint.stat().st_size


def test_a_file_is_hashed_again_only_if_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"one")
    os.utime(path, ns=(1, 1))
    assert hash_file(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert hash_file(path) == hashlib.sha256(b"one").hexdigest()
    os.utime(path, ns=(2, 2))
    assert hash_file(path) == hashlib.sha256(b"two").hexdigest()
