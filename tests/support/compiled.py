"""Marks of tests that need the compiled kernels, and AMX on CPUs that do not have it."""

from __future__ import annotations

import ctypes
import fcntl
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from rudalle_lib import kernels
from rudalle_lib.digests import digest_of
from rudalle_lib.kernels import abi

SOURCES = Path(kernels.__file__).with_name("csrc")
BUILD = Path(__file__).resolve().parents[2] / "build"
"""Where variants of the library are built; git ignores it, and `make clean` deletes it."""

OPTIONS = ("-std=c++17", "-fopenmp", "-Wno-psabi", "-Wall", "-Werror", "-shared", "-fPIC")

AVX2_ENVIRONMENT = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
"""What limits torch to AVX2."""

AMX = ("emulated", "hardware") if kernels.has_amx() else ("emulated",)
"""How tests get AMX on this machine."""

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
"""The test compiles a library of its own."""

needs_kernels = pytest.mark.skipif(
    not kernels.is_available() and shutil.which("c++") is None, reason="there is no C++ compiler"
)
"""With a compiler the kernels must have been built; without one, such tests are skipped."""


CACHED = (
    kernels._library, kernels._function, kernels._run_all, kernels.has_amx, kernels.has_vectors,
)  # fmt: skip
"""What `kernels` remembers of its library."""


def forget() -> None:
    """Make `kernels` look for its library again."""
    for function in CACHED:
        function.cache_clear()


@cache
def build(macro: str, *options: str) -> Path:
    """Build a variant of the library with a macro of `csrc/`, once for all processes."""
    sources = sorted(SOURCES.iterdir())
    version = digest_of([options, [[path.name, path.read_text("utf-8")] for path in sources]])
    BUILD.mkdir(exist_ok=True)
    path = BUILD / f"{macro.lower()}-{version}.so"
    with (BUILD / f"{macro.lower()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes start at the same time
        if not path.exists():
            partial = path.with_suffix(".partial")
            units = [str(source) for source in sources if source.suffix == ".cpp"]
            command = ["c++", *OPTIONS, *options, f"-D{macro}", "-o", str(partial), *units]
            subprocess.run(command, check=True)
            partial.rename(path)
    return path


def build_emulated() -> Path:
    """Build the library whose AMX instructions are plain C++ (`csrc/amx_emulation.h`)."""
    return build("EMULATE_AMX", "-O2", "-march=native")


@cache
def _emulated_library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(build_emulated()))
    assert abi.mismatches(library) == ["constant_EMULATED: expected 0, found 1"]
    return library


@contextmanager
def only_avx2() -> Iterator[None]:
    """The kernels and the choice of layers are those of a CPU with AVX2 and nothing faster.

    Set `AVX2_ENVIRONMENT` before torch is imported, so that it limits itself, too.
    """
    library = ctypes.CDLL(str(build("ONLY_AVX2", "-O3")))
    assert not abi.mismatches(library)
    forget()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "_library", cache(lambda: library))
            patch.setattr("torch.cpu._is_vnni_supported", lambda: False)
            yield
    finally:
        forget()


@contextmanager
def emulated_amx() -> Iterator[None]:
    """All kernels come from the emulated library, so this CPU seems to have AMX."""
    forget()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "_library", _emulated_library)
            yield
    finally:
        forget()


@contextmanager
def amx_by(kind: str) -> Iterator[None]:
    """Get AMX in one of the ways of `AMX`."""
    if kind == "hardware":
        assert kernels.has_amx()
        yield
    else:
        with emulated_amx():
            yield
