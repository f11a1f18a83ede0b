"""Choose devices, check which precisions they support, and set the number of CPU threads."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from rudalle_lib import kernels
from rudalle_lib.errors import SettingsError
from rudalle_lib.models.layers import triton_support
from rudalle_lib.models.layers.int8_dynamic_linear import has_vnni

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
    "int8_dynamic": torch.qint8,
}
"""Precisions by name.

The 8-bit ones apply to the weights of linear layers only; `compute_dtype` returns the type of
everything else. int8 dequantises weights before multiplying; qint8 also multiplies in 8 bits, as in
`torch.ao.quantization.quantize_dynamic`.
"""

INT8_DTYPES = (torch.int8, torch.qint8)
"""Precisions in which the weights of linear layers have 8 bits."""

OMP_PAUSE_HARD = 2
"""Argument of OpenMP 5.0's `omp_pause_resource_all`: free everything that can be recreated."""


def resolve_devices(setting: str = "auto") -> list[torch.device]:
    """The devices that a run uses, at least one.

    A GPU that this machine has and PyTorch cannot use is an error, unless the CPU is asked for: a
    run on the CPU would take a hundred times as long.

    Args:
        setting: "auto" for all GPUs or, without GPUs, the CPU; "cpu"; "cuda" for all GPUs; or one
            GPU such as "cuda:0".

    Raises:
        SettingsError: the setting is unknown, this machine does not have that GPU, or its driver
            is too old.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    all_gpus = [torch.device("cuda", index) for index in range(count)]
    if not all_gpus and setting != "cpu":
        check_driver()
    if setting == "auto":
        return all_gpus or [torch.device("cpu")]
    if setting == "cpu":
        return [torch.device("cpu")]
    kind, _, index = setting.partition(":")
    if kind != "cuda" or (":" in setting and not index.isdecimal()):
        raise SettingsError(
            f"unknown device {setting!r}; expected auto, cpu, cuda or one GPU as cuda:0"
        )
    devices = all_gpus if not index else all_gpus[int(index) : int(index) + 1]
    if not devices:
        raise SettingsError(
            f"device {setting!r} was not found: this machine has {count} CUDA devices; "
            "use auto or cpu, or install a CUDA build of torch"
        )
    return devices


def check_driver(devices: Path = Path("/dev")) -> None:
    """Check that PyTorch is not kept from an NVIDIA GPU of this machine, as by an old driver.

    Builds of PyTorch for CPUs, and GPUs hidden by `CUDA_VISIBLE_DEVICES`, are what somebody wanted.

    Args:
        devices: the folder of device files.

    Raises:
        SettingsError: it is.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    has_gpu = any(devices.glob("nvidia[0-9]*")) or shutil.which("nvidia-smi") is not None
    if torch.version.cuda is None or hidden or not has_gpu:
        return
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise SettingsError(
            f"this machine has an NVIDIA GPU, but PyTorch {torch.__version__} cannot use it: "
            f"{reason} Update the driver (nvidia-smi shows its version), install a PyTorch for an "
            f"older CUDA than {torch.version.cuda}, or choose runtime.devices=cpu"
        ) from None


def resolve_dtype(name: str, device: torch.device | str) -> torch.dtype:
    """The torch type of a precision, if the device supports it.

    Args:
        name: a key of `DTYPES`.
        device: the device that computes.

    Raises:
        SettingsError: the name is unknown, or the device does not support the precision.
    """
    device = torch.device(device)
    if name not in DTYPES:
        raise SettingsError(f"unknown dtype {name!r}; expected one of {', '.join(DTYPES)}")
    if name == "float16" and device.type == "cpu":
        raise SettingsError(
            "dtype float16 is not supported on the cpu, where it is slow and overflows; "
            "use bfloat16 or float32"
        )
    if name == "int8_dynamic":
        check_int8_products(device)
    if name == "bfloat16" and not has_bfloat16(device):
        raise SettingsError(
            f"{device} cannot compute in bfloat16, which needs compute capability 8.0 (Ampere); "
            "use float16 or float32"
        )
    return DTYPES[name]


def compute_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The type in which a network computes: that of its weights, unless they have 8 bits.

    Args:
        dtype: type of the weights.
        device: the device that computes.

    Returns:
        For 8-bit weights bfloat16, or float16 on GPUs without bfloat16; otherwise `dtype`.
    """
    if dtype not in INT8_DTYPES:
        return dtype
    return torch.bfloat16 if has_bfloat16(device) else torch.float16


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 itself; older GPUs emulate it, which is slow.

    CPUs without it convert to float32 and back, and count as able.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        return True
    return torch.cuda.get_device_capability(device) >= (8, 0)


def best_dtype(devices: Sequence[torch.device]) -> str:
    """The fastest precision of a decoder in which all devices draw the tokens of float32.

    Measured: bfloat16 agrees with float32 in 100.00% of tokens and is faster on every processor
    that multiplies it itself, and on CPUs with the kernels of `vector_linear`. See
    docs/performance.md.
    """
    return "bfloat16" if all(map(_draws_faster_in_bfloat16, devices)) else "float32"


def best_image_dtype(devices: Sequence[torch.device]) -> str:
    """The fastest precision of networks that make or score images.

    Convolutions in bfloat16 are faster only on processors that multiply it themselves.
    """
    return "bfloat16" if all(map(_multiplies_bfloat16, devices)) else "float32"


def _draws_faster_in_bfloat16(device: torch.device) -> bool:
    return _multiplies_bfloat16(device) or (device.type == "cpu" and kernels.has_vectors())


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a processor has instructions for products of bfloat16, and torch uses them."""
    if device.type != "cpu":
        return has_bfloat16(device)
    has_instructions = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(has_instructions and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def can_multiply_int8() -> bool:
    """Whether linear layers can multiply 8-bit integers on this CPU: with AMX, VNNI or AVX2."""
    return has_vnni() or kernels.has_vectors()


def check_int8_products(device: torch.device) -> None:
    """Check that linear layers can multiply 8-bit integers on a device.

    Raises:
        SettingsError: they cannot; the sentence says why.
    """
    if device.type == "cpu":
        reason = None if can_multiply_int8() else "the cpu has no 8-bit products (VNNI or AVX2)"
    else:
        reason = triton_support.obstacle(device)
    if reason is not None:
        raise SettingsError(
            f"dtype int8_dynamic is not possible on {device}: {reason}; use bfloat16, or int8 to "
            "save memory"
        )


def set_threads(count: int | None) -> int:
    """Set the number of CPU threads with which torch computes in this process.

    Args:
        count: at least 1; None changes nothing.

    Returns:
        The number of threads in use.

    Raises:
        SettingsError: `count` is less than 1.
    """
    if count is not None:
        if count < 1:
            cores = os.cpu_count() or 1
            raise SettingsError(
                f"threads: expected 1 to {cores} (the number of cores), found {count}"
            )
        torch.set_num_threads(count)
    return torch.get_num_threads()


def release_threads() -> None:
    """End the OpenMP threads of the calling thread; they are recreated when needed.

    OpenMP keeps a pool of threads for every thread that has ever computed. If all pools together
    have more threads than there are cores, GNU OpenMP puts idle threads to sleep instead of letting
    them spin, and small networks take 1.5 times as long. Does nothing if torch comes with another
    OpenMP.
    """
    library = _gnu_openmp()
    if library is not None:
        library.omp_pause_resource_all(OMP_PAUSE_HARD)


@cache
def _gnu_openmp() -> ctypes.CDLL | None:
    paths = sorted(Path(torch.__file__).parent.glob("lib/libgomp*"))
    library = ctypes.CDLL(str(paths[0])) if paths else None
    return library if hasattr(library, "omp_pause_resource_all") else None


def _compute_with_one_thread() -> None:
    torch.set_num_threads(1)


# OpenMP's threads do not exist in a forked child, and GNU OpenMP waits for them for ever as soon as
# the child computes. With one thread it needs none. Children that need more threads are spawned.
os.register_at_fork(after_in_child=_compute_with_one_thread)
