"""Devices and precisions are resolved, and refused with a sentence that says what to do."""

import pytest
import torch

from rudalle_lib.devices import compute_dtype, resolve_devices, resolve_dtype, set_threads
from rudalle_lib.errors import SettingsError

CPU = torch.device("cpu")


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int, bfloat16: bool = True) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bfloat16)


def test_auto_is_the_cpu_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 0)
    assert resolve_devices("auto") == resolve_devices() == resolve_devices("cpu") == [CPU]


def test_auto_is_every_gpu_and_one_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 2)
    both = [torch.device("cuda:0"), torch.device("cuda:1")]
    assert resolve_devices("auto") == resolve_devices("cuda") == both
    assert resolve_devices("cuda:1") == both[1:]
    assert resolve_devices("cpu") == [CPU]


@pytest.mark.parametrize(("count", "setting"), [(0, "cuda"), (0, "cuda:0"), (2, "cuda:2")])
def test_an_absent_gpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, count: int, setting: str
) -> None:
    with_gpus(monkeypatch, count)
    with pytest.raises(SettingsError, match=f"'{setting}' is not there: .* {count} CUDA devices"):
        resolve_devices(setting)


@pytest.mark.parametrize("setting", ["gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", ""])
def test_unknown_devices_are_refused(setting: str) -> None:
    with pytest.raises(SettingsError, match="expected auto, cpu, cuda or one GPU as cuda:0"):
        resolve_devices(setting)


def test_dtypes_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 1, bfloat16=False)
    assert resolve_dtype("float32", CPU) is torch.float32
    assert resolve_dtype("bfloat16", "cpu") is torch.bfloat16
    assert resolve_dtype("float16", "cuda:0") is torch.float16
    with pytest.raises(SettingsError, match="float16 is not for the cpu.*use bfloat16"):
        resolve_dtype("float16", CPU)
    with pytest.raises(SettingsError, match="cannot compute in bfloat16; use float16"):
        resolve_dtype("bfloat16", "cuda:0")
    with pytest.raises(SettingsError, match="expected one of float32, bfloat16, float16, int8"):
        resolve_dtype("int4", CPU)


def test_int8_weights_compute_in_what_the_device_can(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda:0")
    assert resolve_dtype("int8", CPU) is torch.int8
    assert compute_dtype(torch.int8, CPU) is torch.bfloat16
    assert compute_dtype(torch.float32, CPU) is torch.float32
    for able, expected in ((True, torch.bfloat16), (False, torch.float16)):
        with_gpus(monkeypatch, 1, able)
        assert compute_dtype(torch.int8, gpu) is expected


def test_products_of_8_bits_are_for_processors_that_have_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    assert resolve_dtype("int8_dynamic", CPU) is torch.qint8
    assert compute_dtype(torch.qint8, CPU) is torch.bfloat16
    with pytest.raises(SettingsError, match="VNNI.*cuda:0 is not; use bfloat16, or int8"):
        resolve_dtype("int8_dynamic", "cuda:0")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(SettingsError, match="VNNI.*this one does not; use bfloat16, or int8"):
        resolve_dtype("int8_dynamic", CPU)


def test_threads_are_set_and_checked() -> None:
    before = torch.get_num_threads()
    try:
        assert set_threads(None) == before
        assert set_threads(1) == torch.get_num_threads() == 1
        with pytest.raises(SettingsError, match="threads: expected 1 to"):
            set_threads(0)
    finally:
        torch.set_num_threads(before)
