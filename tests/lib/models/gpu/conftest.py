"""The kernels of this folder's tests: compiled on a machine with a GPU, else interpreted.

Triton decides when a kernel is defined, by the variable `TRITON_INTERPRET`. Its own functions are
kernels too, so a second copy of Triton is imported here with that variable set. Only tests of this
folder see it: variable and modules are as before when they have ended.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

KERNELS = [
    "rudalle_lib.models.gpu.cell_attention",
    "rudalle_lib.models.gpu.add_norms",
    "rudalle_lib.models.gpu.embed_token",
    "rudalle_lib.models.gpu.draw_token",
    "rudalle_lib.models.layers.group_norm_kernels",
    "rudalle_lib.models.layers.triton_int8",
    "tests.support.noise_kernel",
]
"""The modules that define kernels."""

_interpreted: dict[str, ModuleType] = {}


def _is_triton(name: str) -> bool:
    return name.partition(".")[0] == "triton" and not name.startswith("triton._C")


def _take_triton() -> dict[str, ModuleType]:
    """Remove Triton from the imported modules; its C extension cannot be imported twice."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if _is_triton(name)}


@contextmanager
def interpreter() -> Iterator[None]:
    """Import and run the interpreting copy of Triton within this block."""
    compiled, variable = _take_triton(), os.environ.get("TRITON_INTERPRET")
    sys.modules.update(_interpreted)
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        yield
    finally:
        _interpreted.update(_take_triton())
        sys.modules.update(compiled)
        os.environ.pop("TRITON_INTERPRET")
        if variable is not None:
            os.environ["TRITON_INTERPRET"] = variable


def _teach_bfloat16() -> None:
    """The interpreter stores bfloat16 as whole numbers, multiplies them as such, and cuts bits off.

    A GPU rounds to the nearest number.
    """
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, _convert_float

    multiply, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def as_float32(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        bits = _convert_float(operand.data, tl.bfloat16, tl.float32, None)
        return TensorHandle(bits.view(np.float32), tl.float32)

    def multiply_numbers(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return multiply(self, as_float32(a), as_float32(b), *rest)

    def rounded(operand: Any) -> Any:
        bits = operand.data.view(np.uint32)
        nearest = (bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000).astype(np.uint32)
        is_nan = np.isnan(operand.data)
        return TensorHandle(np.where(is_nan, operand.data, nearest.view(np.float32)), tl.float32)

    def cast_numbers(self: Any, source: Any, target: Any) -> Any:
        if target.scalar == tl.bfloat16:
            if source.dtype.scalar.is_int():
                source = cast(self, source, tl.float32)
            if source.dtype.scalar == tl.float32:
                source = rounded(source)
        return cast(self, source, target)

    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = multiply_numbers, cast_numbers


if not torch.cuda.is_available():
    with interpreter():
        _teach_bfloat16()
        for name in KERNELS:
            importlib.import_module(name)


@pytest.fixture(autouse=True)
def kernels_run_here() -> Iterator[None]:
    """Let the kernels run on this machine."""
    if torch.cuda.is_available():
        yield
        return
    with (
        interpreter(),
        np.errstate(invalid="ignore", over="ignore", divide="ignore"),
    ):  # as on a GPU
        yield


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
