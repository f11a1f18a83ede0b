"""Devices and precisions are resolved, or rejected with an error that says what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rudalle_lib import kernels
from rudalle_lib.errors import SettingsError
from rudalle_lib.models.layers import triton_support
from rudalle_lib.runtime.devices import (
    check_driver,
    compute_dtype,
    resolve_devices,
    resolve_dtype,
    set_threads,
)

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[3]


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int, bfloat16: bool = True) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    capability = (8, 0) if bfloat16 else (7, 5)  # PyTorch emulates bfloat16 on the latter
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)


def test_auto_is_the_cpu_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 0)
    assert resolve_devices("auto") == resolve_devices() == resolve_devices("cpu") == [CPU]


def test_auto_means_all_gpus_and_one_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 2)
    both = [torch.device("cuda:0"), torch.device("cuda:1")]
    assert resolve_devices("auto") == resolve_devices("cuda") == both
    assert resolve_devices("cuda:1") == both[1:]
    assert resolve_devices("cpu") == [CPU]


@pytest.mark.parametrize(("count", "setting"), [(0, "cuda"), (0, "cuda:0"), (2, "cuda:2")])
def test_a_missing_gpu_is_rejected(
    monkeypatch: pytest.MonkeyPatch, count: int, setting: str
) -> None:
    with_gpus(monkeypatch, count)
    with pytest.raises(SettingsError, match=f"'{setting}' was not found: .* {count} CUDA devices"):
        resolve_devices(setting)


@pytest.fixture
def old_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of device files with a GPU that a CUDA build of PyTorch cannot use."""

    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\n")

    with_gpus(monkeypatch, 0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("nvidia0", "nvidiactl"):
        (tmp_path / name).touch()
    return tmp_path


def test_a_driver_that_is_too_old_is_an_error_and_no_run_on_the_cpu(
    old_driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = r"cannot use it: The NVIDIA driver .* too old \(found version 11040\)\. Update the"
    with pytest.raises(SettingsError, match=sentence):
        check_driver(old_driver)
    monkeypatch.setattr("rudalle_lib.runtime.devices.shutil.which", lambda _: "/bin/nvidia-smi")
    for setting in ("auto", "cuda", "cuda:0"):
        with pytest.raises(SettingsError, match=sentence):
            resolve_devices(setting)
    assert resolve_devices("cpu") == [CPU]


@pytest.mark.parametrize("reason", ["no gpu", "hidden", "a build for cpus"])
def test_a_run_on_the_cpu_is_no_error_if_there_is_nothing_else(
    reason: str, old_driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == "no gpu":
        (old_driver / "nvidia0").unlink()
    elif reason == "hidden":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    else:
        monkeypatch.setattr(torch.version, "cuda", None)
    check_driver(old_driver)


@pytest.mark.parametrize("setting", ["gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", ""])
def test_unknown_devices_are_rejected(setting: str) -> None:
    with pytest.raises(SettingsError, match="expected auto, cpu, cuda or one GPU as cuda:0"):
        resolve_devices(setting)


def test_dtypes_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 1, bfloat16=False)
    assert resolve_dtype("float32", CPU) is torch.float32
    assert resolve_dtype("bfloat16", "cpu") is torch.bfloat16
    assert resolve_dtype("float16", "cuda:0") is torch.float16
    with pytest.raises(SettingsError, match="float16 is not supported on the cpu.*use bfloat16"):
        resolve_dtype("float16", CPU)
    with pytest.raises(SettingsError, match=r"cannot compute in bfloat16, .* 8\.0 .*use float16"):
        resolve_dtype("bfloat16", "cuda:0")
    with pytest.raises(SettingsError, match="expected one of float32, bfloat16, float16, int8"):
        resolve_dtype("int4", CPU)


def test_networks_with_int8_weights_compute_in_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda:0")
    assert resolve_dtype("int8", CPU) is torch.int8
    assert compute_dtype(torch.int8, CPU) is torch.bfloat16
    assert compute_dtype(torch.float32, CPU) is torch.float32
    for supported, expected in ((True, torch.bfloat16), (False, torch.float16)):
        with_gpus(monkeypatch, 1, supported)
        assert compute_dtype(torch.int8, gpu) is expected


def test_int8_dynamic_requires_8_bit_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "has_vectors", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    assert resolve_dtype("int8_dynamic", CPU) is torch.qint8
    assert compute_dtype(torch.qint8, CPU) is torch.bfloat16
    monkeypatch.setattr(triton_support, "obstacle", lambda device: None)
    assert resolve_dtype("int8_dynamic", "cuda:0") is torch.qint8
    monkeypatch.setattr(triton_support, "obstacle", lambda device: "Triton is not installed")
    with pytest.raises(SettingsError, match="on cuda:0: Triton is not installed; use bfloat16"):
        resolve_dtype("int8_dynamic", "cuda:0")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(SettingsError, match="on cpu: .*VNNI.*; use bfloat16, or int8"):
        resolve_dtype("int8_dynamic", CPU)
    monkeypatch.setattr(kernels, "has_vectors", lambda: True)
    assert resolve_dtype("int8_dynamic", CPU) is torch.qint8


def test_threads_are_set_and_checked() -> None:
    before = torch.get_num_threads()
    try:
        assert set_threads(None) == before
        assert set_threads(1) == torch.get_num_threads() == 1
        with pytest.raises(SettingsError, match="threads: expected 1 to"):
            set_threads(0)
    finally:
        torch.set_num_threads(before)


def test_a_forked_child_computes_instead_of_waiting_for_threads_of_its_parent() -> None:
    code = """
import os, signal, torch
import rudalle_lib.runtime.devices
torch.set_num_threads(2)
work = lambda: (torch.ones(1500, 1500) @ torch.ones(1500, 1500), torch.ones(3_000_000).exp())
work()  # starts OpenMP's threads
child = os.fork()
if child == 0:
    work()
    os._exit(torch.get_num_threads())
signal.alarm(240)
status = os.waitpid(child, 0)[1]
work()
print(os.waitstatus_to_exitcode(status), torch.get_num_threads())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("1 2\n", "")
