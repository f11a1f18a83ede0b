"""Whether Triton can compile and start kernels for a GPU of this machine, and what they share."""

from __future__ import annotations

import os
import shutil
import sysconfig
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

ENV_SWITCH = "RUDALLE_GPU_ENGINE"
"""Environment variable; "0" has PyTorch compute on GPUs what kernels of ours compute otherwise."""

MIN_CAPABILITY = (8, 0)
"""Compute capability of the first GPUs for which the kernels are compiled in the tests (A100)."""


class RoundedRows(NamedTuple):
    """Input rows in 8 bits.

    Attributes:
        levels: int8 [rows, inputs].
        step: float32 [rows], of a level; infinite in rows with NaN or infinite values.
    """

    levels: Tensor
    step: Tensor


class BoundedRows(NamedTuple):
    """Input rows that a GPU rounds to 8 bits while it multiplies them.

    Attributes:
        values: [rows, inputs].
        largest: float32 [rows], the largest absolute value of each; infinite in rows with NaN.
    """

    values: Tensor
    largest: Tensor


def can_launch(device: torch.device) -> bool:
    """Whether kernels of ours run on this device."""
    return device.type == "cuda" and obstacle(device) is None


@cache
def obstacle(device: torch.device) -> str | None:
    """Why no kernel of ours can run on a GPU, in words; None if they can."""
    if os.environ.get(ENV_SWITCH) == "0":
        return f"{ENV_SWITCH} is 0"
    if find_spec("triton") is None:
        return "Triton is not installed"
    if torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        name, needed = torch.cuda.get_device_name(device), ".".join(map(str, MIN_CAPABILITY))
        return f"{name} is older than compute capability {needed}"
    return missing_for_launchers()


def missing_for_launchers() -> str | None:
    """What Triton lacks to compile the C code that starts kernels, in words; None if nothing."""
    chosen = os.environ.get("CC")
    if not any(shutil.which(name) for name in ([chosen] if chosen else ["gcc", "clang"])):
        return f"Triton needs a C compiler, and there is no {chosen or 'gcc'} (install gcc)"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton does
    folder = Path(sysconfig.get_paths(scheme=scheme)["include"])
    if not (folder / "Python.h").exists():
        return f"Triton needs Python's headers, and {folder} has none (install python3-dev)"
    return None
