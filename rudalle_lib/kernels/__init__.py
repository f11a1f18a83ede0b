"""CPU kernels of a decoding step: one compiled library in C++, called through `ctypes`.

It is built when this package is installed, if there is a C++ compiler. It gets tensors as plain
addresses and computes with the threads of the OpenMP library that torch has loaded.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from rudalle_lib.kernels.abi import TILE_COLUMNS, TILE_ROWS, Call, mismatches

LOGGER = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
"""Dtypes that kernels are compiled for."""

GRAIN_SIZE = 32_768
"""Up to this many elements read, one thread is faster than several; the value that torch uses."""

ENV_SWITCH = "RUDALLE_NATIVE"
"""Environment variable; 0 disables the kernels, so that torch computes everything."""

REBUILD = "pip install --no-deps -e ."
"""The command that rebuilds the library of a checkout, as messages show it."""


@cache
def _library() -> ctypes.CDLL | None:
    if os.environ.get(ENV_SWITCH) == "0":
        return None
    paths = [Path(__file__).with_name(f"_kernels{suffix}") for suffix in EXTENSION_SUFFIXES]
    path = next((path for path in paths if path.exists()), None)
    return None if path is None else load_library(path)


def load_library(path: Path) -> ctypes.CDLL | None:
    """Load a library if it fits this package; see `abi`.

    Returns:
        None, after a warning, if the library was built from other sources.
    """
    library = ctypes.CDLL(str(path))
    differences = mismatches(library)
    if not differences:
        return library
    LOGGER.warning(
        "the compiled kernels in %s are stale and are not used, so decoding is slower: %s%s. "
        "Rebuild them with: %s",
        path,
        "; ".join(differences[:3]),
        "; ..." if len(differences) > 3 else "",
        REBUILD,
    )
    return None


def is_available() -> bool:
    """Whether the kernels were compiled, match this package and are not disabled."""
    return _library() is not None


def supports(tensor: Tensor) -> bool:
    """Whether the kernels are available for the device and dtype of a tensor."""
    return is_available() and tensor.device.type == "cpu" and tensor.dtype in DTYPES


@cache
def has_amx() -> bool:
    """Whether the CPU has AMX, this process may use it and the kernels are available."""
    library = _library()
    return library is not None and bool(library.has_amx())


@cache
def has_vectors() -> bool:
    """Whether the kernels are available and this CPU has the vectors of `vector_linear`."""
    library = _library()
    return library is not None and bool(library.has_vectors())


def to_tiles(matrix: Tensor) -> Tensor:
    """Lay out matrices in the tiles that AMX multiplies with.

    Args:
        matrix: bfloat16 or int8 [..., columns, rows].

    Returns:
        [..., columns / TILE_COLUMNS, rows / (TILE_ROWS * N), TILE_ROWS, TILE_COLUMNS, N]. N is the
        number of rows whose products one instruction adds: 2 of bfloat16, 4 of int8.
    """
    together = 4 // matrix.element_size()
    tiles = "... (tile column) (step row together) -> ... tile step row column together"
    return rearrange(matrix, tiles, column=TILE_COLUMNS, row=TILE_ROWS, together=together)


@dataclass(frozen=True)
class Operation:
    """A call of a kernel, which can be repeated.

    Args:
        function: ctypes handle of a function of an address and a number of threads.
        args: the structure that the address points to.
        single_threaded: whether one thread is faster than several.
        tensors: the tensors that `args` points to, kept alive here.
    """

    function: Any
    args: ctypes.Structure
    single_threaded: bool
    tensors: tuple[Tensor, ...]

    def run(self) -> None:
        """Call the kernel."""
        threads = 1 if self.single_threaded else torch.get_num_threads()
        self.function(ctypes.addressof(self.args), threads)


def operation(
    name: str, dtype: torch.dtype, args: ctypes.Structure, elements: int, *tensors: Tensor
) -> Operation:
    """Prepare a call of a kernel.

    Args:
        name: the kernel, without the dtype.
        dtype: one of those that it is compiled for.
        args: its arguments, one of `abi.STRUCTURES`.
        elements: how many elements it reads; decides whether several threads are worth it.
        *tensors: the tensors that `args` points to.
    """
    return Operation(_function(name, dtype), args, elements <= GRAIN_SIZE, tensors)


class Program:
    """Operations that run one after another in a single call.

    Between separate calls Python would take a large part of the time of a step, because the data it
    needs has been evicted from the CPU caches.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._operations = tuple(operations)  # keeps alive what the calls point to
        self._calls = (Call * len(operations))(*map(_call, operations))

    def run(self) -> None:
        """Run all operations, with the current values in their structures."""
        _run_all()(ctypes.addressof(self._calls), len(self._calls), torch.get_num_threads())


def _call(operation: Operation) -> Call:
    address = ctypes.cast(operation.function, ctypes.c_void_p).value
    return Call(address, ctypes.addressof(operation.args), operation.single_threaded)


@cache
def _run_all() -> Callable[[int, int, int], None]:
    library = _library()
    assert library is not None
    function = library.run_all
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int), None
    return function


@cache
def _function(name: str, dtype: torch.dtype) -> Any:
    function = getattr(_library(), f"{name}_{str(dtype).removeprefix('torch.')}")
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_int), None
    return function
