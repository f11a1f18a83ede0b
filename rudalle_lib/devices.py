"""Which devices there are, which precision they can do, and how many CPU threads to use."""

import ctypes
import os
from functools import cache
from pathlib import Path

import torch

from rudalle_lib.errors import SettingsError

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
    "int8_dynamic": torch.qint8,
}
"""Precisions by name. Those of 8 bits are of layers' weights; see `compute_dtype` for the rest.

As in `torch.ao.quantization.quantize_dynamic`, qint8 stands for products of 8 bits too.
"""

IN_8_BITS = (torch.int8, torch.qint8)

OMP_PAUSE_HARD = 2
"""Of OpenMP 5.0's `omp_pause_resource_all`: give up what can be made anew."""


def resolve_devices(setting: str = "auto") -> list[torch.device]:
    """The devices that a run works on, at least one.

    Args:
        setting: "auto" for every GPU or else the CPU, "cpu", "cuda" for every GPU, or one GPU as
            "cuda:0".

    Raises:
        SettingsError: unknown setting, or a GPU that this machine does not have.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    every_gpu = [torch.device("cuda", index) for index in range(count)]
    if setting == "auto":
        return every_gpu or [torch.device("cpu")]
    if setting == "cpu":
        return [torch.device("cpu")]
    kind, _, index = setting.partition(":")
    if kind != "cuda" or (":" in setting and not index.isdecimal()):
        raise SettingsError(
            f"unknown device {setting!r}; expected auto, cpu, cuda or one GPU as cuda:0"
        )
    wanted = every_gpu if not index else every_gpu[int(index) : int(index) + 1]
    if not wanted:
        raise SettingsError(
            f"device {setting!r} is not there: this machine has {count} CUDA devices; "
            "use auto or cpu, or install a CUDA build of torch"
        )
    return wanted


def resolve_dtype(name: str, device: torch.device | str) -> torch.dtype:
    """The precision by its name, if the device can compute in it.

    Raises:
        SettingsError: unknown name, or a precision that the device lacks.
    """
    device = torch.device(device)
    if name not in DTYPES:
        raise SettingsError(f"unknown dtype {name!r}; expected one of {', '.join(DTYPES)}")
    if name == "float16" and device.type == "cpu":
        raise SettingsError(
            "dtype float16 is not for the cpu, which computes it slowly and overflows; "
            "use bfloat16 or float32"
        )
    if name == "int8_dynamic" and not (device.type == "cpu" and can_multiply_int8()):
        raise SettingsError(
            "dtype int8_dynamic is for a cpu that multiplies 8-bit integers (VNNI), which "
            f"{'this one does not' if device.type == 'cpu' else f'{device} is not'}; "
            "use bfloat16, or int8 to save memory"
        )
    if name == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise SettingsError(f"{device} cannot compute in bfloat16; use float16 or float32")
    return DTYPES[name]


def compute_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What a network computes in whose weights are of a dtype: the same, but for 8-bit weights."""
    if dtype not in IN_8_BITS:
        return dtype
    old_gpu = device.type == "cuda" and not torch.cuda.is_bf16_supported()
    return torch.float16 if old_gpu else torch.bfloat16


def can_multiply_int8() -> bool:
    """Whether this processor and this build of torch have products of 8-bit integers."""
    names = ("qlinear_prepack", "qlinear_pointwise")
    return (
        torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.onednn, name) for name in names)
        and torch.cpu._is_vnni_supported()
    )


def set_threads(count: int | None) -> int:
    """Set how many CPU threads this process computes with; None leaves it as it is.

    Returns:
        The number of threads in use.

    Raises:
        SettingsError: fewer than one.
    """
    if count is not None:
        if count < 1:
            cores = os.cpu_count() or 1
            raise SettingsError(f"threads: expected 1 to {cores} (the cores here), found {count}")
        torch.set_num_threads(count)
    return torch.get_num_threads()


def release_threads() -> None:
    """End the threads with which the calling thread computed; they are made anew where needed.

    OpenMP keeps a pool for every thread that has ever computed. Where pools have more threads than
    there are cores, GNU's sends a thread to sleep at every turn instead of letting it wait: small
    networks take half as long again. Does nothing where torch comes with another OpenMP.
    """
    library = _gnu_openmp()
    if library is not None:
        library.omp_pause_resource_all(OMP_PAUSE_HARD)


@cache
def _gnu_openmp() -> ctypes.CDLL | None:
    found = sorted(Path(torch.__file__).parent.glob("lib/libgomp*"))
    library = ctypes.CDLL(str(found[0])) if found else None
    return library if hasattr(library, "omp_pause_resource_all") else None
