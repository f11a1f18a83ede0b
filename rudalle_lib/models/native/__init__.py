"""What of a decoding step is compiled, for a CPU: one shared library, called through `ctypes`.

It is built when this package is installed, where there is a C++ compiler, knows nothing of torch
but addresses, and computes with the threads of torch's OpenMP, which is the one that is loaded.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
"""What functions are compiled for."""

GRAIN = 32_768
"""Numbers that one thread alone is done with sooner than with others; torch's own measure."""


@cache
def _library() -> ctypes.CDLL | None:
    paths = [Path(__file__).with_name(f"_kernels{suffix}") for suffix in EXTENSION_SUFFIXES]
    return next((ctypes.CDLL(str(path)) for path in paths if path.exists()), None)


def is_compiled() -> bool:
    """Whether there was a compiler when this package was installed."""
    return _library() is not None


@cache
def can_multiply_tiles() -> bool:
    """Whether the processor has AMX's products of 8-bit integers and this process may use them."""
    library = _library()
    return library is not None and bool(library.can_multiply_tiles())


@cache
def function(name: str, dtype: torch.dtype) -> Callable[[Any, int], None]:
    """Look up a function that takes a pointer to a structure and how many threads to use."""
    found = getattr(_library(), f"{name}_{str(dtype).removeprefix('torch.')}")
    found.argtypes, found.restype = (ctypes.c_void_p, ctypes.c_int), None
    return found


def threads_for(numbers: int) -> int:
    """How many threads to use where so many numbers are read."""
    return torch.get_num_threads() if numbers > GRAIN else 1
