"""What of a decoding step is compiled, for a CPU: one shared library, called through `ctypes`.

It is built when this package is installed, where there is a C++ compiler, knows nothing of torch
but addresses, and computes with the threads of torch's OpenMP, which is the one that is loaded.
"""

import ctypes
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

BLOCK = 32
"""Neighbouring numbers that are read at once, as in `vectors.h`."""

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
"""What functions are compiled for."""

TILE_ROWS = TILE_COLUMNS = 16
"""Of a tile; a row has 64 bytes."""

GRAIN = 32_768
"""Numbers that one thread alone is done with sooner than with others; torch's own measure."""


SWITCH = "RUDALLE_NATIVE"
"""A variable of the environment: 0 leaves everything to torch."""


@cache
def _library() -> ctypes.CDLL | None:
    if os.environ.get(SWITCH) == "0":
        return None
    paths = [Path(__file__).with_name(f"_kernels{suffix}") for suffix in EXTENSION_SUFFIXES]
    return next((ctypes.CDLL(str(path)) for path in paths if path.exists()), None)


def is_compiled() -> bool:
    """Whether there was a compiler when this package was installed, and it is not switched off."""
    return _library() is not None


def can_compute(tensor: Tensor) -> bool:
    """Whether what is compiled can work where a tensor lies, in its dtype."""
    return is_compiled() and tensor.device.type == "cpu" and tensor.dtype in DTYPES


@cache
def can_multiply_tiles() -> bool:
    """Whether the processor has AMX's products and this process may use them."""
    library = _library()
    return library is not None and bool(library.can_multiply_tiles())


def in_tiles(matrix: Tensor) -> Tensor:
    """[..., columns, rows] of bfloat16 or int8 laid out as AMX's tiles multiply with it.

    Returns:
        [..., columns / TILE_COLUMNS, S, TILE_ROWS, TILE_COLUMNS, numbers that are summed at once].
    """
    together = 4 // matrix.element_size()
    tiles = "... (tile column) (step row together) -> ... tile step row column together"
    return rearrange(matrix, tiles, column=TILE_COLUMNS, row=TILE_ROWS, together=together)


def numbers(*names: str) -> tuple[tuple[str, type], ...]:
    """Fields of a structure: whole numbers."""
    return tuple((name, ctypes.c_int64) for name in names)


def addresses(*names: str) -> tuple[tuple[str, type], ...]:
    """Fields of a structure: where tensors lie."""
    return tuple((name, ctypes.c_void_p) for name in names)


@dataclass(frozen=True)
class Operation:
    """A call of a compiled function, which can be made again and again.

    Args:
        function: ctypes' handle of what takes a structure's address and a number of threads.
        structure: what it reads and writes.
        is_small: one thread alone is done sooner.
        tensors: those that the structure points to, to keep them.
    """

    function: Any
    structure: ctypes.Structure
    is_small: bool
    tensors: tuple[Tensor, ...]

    def run(self) -> None:
        """Make the call."""
        threads = 1 if self.is_small else torch.get_num_threads()
        self.function(ctypes.addressof(self.structure), threads)


def operation(
    name: str, dtype: torch.dtype, structure: ctypes.Structure, read: int, *tensors: Tensor
) -> Operation:
    """A call of the function of that name for a dtype, which reads so many numbers."""
    return Operation(_function(name, dtype), structure, read <= GRAIN, tensors)


class _Call(ctypes.Structure):
    _fields_ = (*addresses("function", "structure"), *numbers("is_small"))


class Program:
    """Operations that are run one after the other, in one call.

    Between two of them Python would take a good deal of a step's time: what it needs is no longer
    in the cache then.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._operations = tuple(operations)  # keeps what the calls point to
        self._calls = (_Call * len(operations))(*map(_call, operations))

    def run(self) -> None:
        """Run all; what structures hold by now counts."""
        _run_all()(ctypes.addressof(self._calls), len(self._calls), torch.get_num_threads())


def _call(operation: Operation) -> _Call:
    address = ctypes.cast(operation.function, ctypes.c_void_p).value
    return _Call(address, ctypes.addressof(operation.structure), operation.is_small)


@cache
def _run_all() -> Callable[[int, int, int], None]:
    library = _library()
    assert library is not None
    found = library.run_all
    found.argtypes, found.restype = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int), None
    return found


@cache
def _function(name: str, dtype: torch.dtype) -> Any:
    found = getattr(_library(), f"{name}_{str(dtype).removeprefix('torch.')}")
    found.argtypes, found.restype = (ctypes.c_void_p, ctypes.c_int), None
    return found
