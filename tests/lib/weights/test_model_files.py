"""The files of a model are checked before a run: what they are, their tensors, their sizes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rudalle_lib import registry
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.errors import WeightsError
from rudalle_lib.weights.files import resolve_files
from rudalle_lib.weights.model_files import check_files
from tests.support.tiny_stack import write_tiny_stack

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"<!DOCTYPE html><html><title>Sign in</title>"
ANSWER = b'{"error": "Repository not found"}'
MODELS = ("demo-dalle", "demo-vqgan", "demo-ruclip", "demo-realesrgan-x2", "demo-marian")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_stack(tmp_path_factory.mktemp("stack"))


@pytest.fixture
def folder(stack: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stack, tmp_path / "weights"))


def check(folder: Path, name: str) -> None:
    entry = registry.get(name)
    check_files(entry, resolve_files(entry, WeightsConfig(folder=str(folder), offline=True)))


@pytest.mark.parametrize("name", MODELS)
def test_good_files_are_accepted(name: str, stack: Path) -> None:
    check(stack, name)
    check_files(registry.get(name), resolve_files(registry.get(name)))  # those of the package


@pytest.mark.parametrize("content", [b"", POINTER, PAGE, ANSWER, b"not found", bytes(99)])
@pytest.mark.parametrize(
    ("name", "role"), [(name, role) for name in MODELS for role in registry.get(name).files]
)
def test_any_file_of_a_model_that_is_something_else_is_named(
    name: str, role: str, content: bytes, folder: Path
) -> None:
    path = folder / name / registry.get(name).files[role]
    path.write_bytes(content)
    with pytest.raises(WeightsError) as raised:
        check(folder, name)
    message = str(raised.value)
    assert str(path) in message and "\n" not in message and len(message) < 500
    if content in (POINTER, PAGE, b""):
        assert any(kind in message for kind in ("a Git LFS pointer", "an HTML page", "is empty"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def drop_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    del tensors[next(iter(tensors))]
    save_file(tensors, path)


def run_code(path: Path) -> None:
    path.write_bytes(b"\x80\x02cposix\nsystem\nX\x04\0\0\0true\x85R.")


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, damage) for name in MODELS for damage in (truncate, drop_a_tensor)][:-1],
)
def test_damaged_weights_are_found_without_reading_them(
    name: str, damage: Callable[[Path], None], folder: Path
) -> None:
    damage(folder / name / "model.safetensors")
    with pytest.raises(WeightsError, match="not a readable safetensors file|does not fit"):
        check(folder, name)


def test_weights_of_another_model_are_found(folder: Path) -> None:
    shutil.copy(folder / "demo-vqgan/model.safetensors", folder / "demo-realesrgan-x2")
    with pytest.raises(WeightsError, match="does not fit its network"):
        check(folder, "demo-realesrgan-x2")


def test_published_checkpoints_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "Real-ESRGAN" / "RealESRGAN_x4.pth"
    path.parent.mkdir()
    run_code(path)
    with pytest.raises(WeightsError, match="would run code"):
        check(tmp_path, "realesrgan-x4")
    torch.save({"params": {"conv_first.weight": torch.zeros(3)}}, path)
    with pytest.raises(WeightsError, match="does not fit its network"):
        check(tmp_path, "realesrgan-x4")


@pytest.mark.parametrize("kind", ["loop", "broken link", "folder", "pipe"])
def test_what_is_not_a_file_is_named_and_nothing_is_downloaded(kind: str, folder: Path) -> None:
    path = folder / "Real-ESRGAN" / "RealESRGAN_x2.pth"
    path.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "loop" else folder / "absent")
    with pytest.raises(WeightsError, match="RealESRGAN_x2.pth is not a file"):
        check(folder, "realesrgan-x2")
