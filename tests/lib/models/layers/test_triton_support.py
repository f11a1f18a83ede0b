"""What keeps Triton from running is said in words, so that nobody meets a compiler's error."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rudalle_lib.models.layers import triton_support
from rudalle_lib.models.layers.triton_support import can_launch, missing_for_launchers, obstacle

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A GPU with everything that is needed."""
    obstacle.cache_clear()
    monkeypatch.delenv("RUDALLE_GPU_ENGINE", raising=False)
    monkeypatch.delenv("CC", raising=False)
    (tmp_path / "Python.h").touch()
    for name in ("gcc", "odd-cc"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    yield
    obstacle.cache_clear()


def test_nothing_is_missing() -> None:
    assert obstacle(GPU) is None and can_launch(GPU) and not can_launch(torch.device("cpu"))


def test_it_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUDALLE_GPU_ENGINE", "0")
    assert obstacle(GPU) == "RUDALLE_GPU_ENGINE is 0"


def test_there_is_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_support, "find_spec", lambda name: None)
    assert obstacle(GPU) == "Triton is not installed"


def test_the_gpu_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert obstacle(GPU) == "Tesla T4 is older than compute capability 8.0"


def test_there_is_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "odd-cc")
    assert missing_for_launchers() is None
    monkeypatch.setenv("CC", "other-cc")
    assert "there is no other-cc" in str(missing_for_launchers())
    monkeypatch.delenv("CC")
    (tmp_path / "gcc").unlink()
    assert "there is no gcc (install gcc)" in str(missing_for_launchers())


def test_there_are_no_headers(tmp_path: Path) -> None:
    (tmp_path / "Python.h").unlink()
    assert f"{tmp_path} has none (install python3-dev)" in str(missing_for_launchers())
