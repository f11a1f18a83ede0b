"""Compile the kernels with every compiler that they are meant for: `make cross-check`.

Nothing is linked or run. A compiler that is not installed is named and does not fail the check.
This needs the standard library alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "rudalle_lib" / "kernels" / "csrc"

OPTIONS = ("-std=c++17", "-O1", "-fopenmp", "-fPIC", "-Wall", "-Werror", "-Wno-psabi")

TARGETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "GCC, this machine": ("g++", ()),
    "GCC, this machine, AMX emulated": ("g++", ("-DEMULATE_AMX",)),
    "GCC, this machine, AVX2 alone": ("g++", ("-DONLY_AVX2",)),
    "Clang, this machine": ("clang++", ()),
    "Clang, this machine, AMX emulated": ("clang++", ("-DEMULATE_AMX",)),
    "GCC, x86-64": ("x86_64-linux-gnu-g++", ()),
    "GCC, aarch64": ("aarch64-linux-gnu-g++", ()),
    "GCC, aarch64, AMX emulated": ("aarch64-linux-gnu-g++", ("-DEMULATE_AMX",)),
    "Clang, aarch64": ("clang++", ("--target=aarch64-linux-gnu",)),
}
"""Compilers by what they compile for, with their options."""

NEEDED_BY_CLANG = "aarch64-linux-gnu-g++"
"""Clang has no library of its own for aarch64 and uses that of this compiler."""


def missing(compiler: str, options: tuple[str, ...]) -> str | None:
    """What has to be installed for a target, if anything."""
    if shutil.which(compiler) is None:
        return compiler
    needs_library = any(option.startswith("--target=aarch64") for option in options)
    return NEEDED_BY_CLANG if needs_library and shutil.which(NEEDED_BY_CLANG) is None else None


def compile_all(compiler: str, options: tuple[str, ...]) -> str:
    """Compile every source file; return the errors, an empty text if there are none."""
    errors = []
    for source in sorted(SOURCES.glob("*.cpp")):
        command = [compiler, *OPTIONS, *options, "-c", str(source), "-o", os.devnull]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            errors.append(f"{source.name}: {done.stderr.strip()}")
    return "\n".join(errors)


def main() -> int:
    """Compile for every target; returns 1 if one failed."""
    failed = False
    for name, (compiler, options) in TARGETS.items():
        absent = missing(compiler, options)
        errors = "" if absent else compile_all(compiler, options)
        failed = failed or bool(errors)
        outcome = (
            f"not tried, {absent} is not installed" if absent else "failed" if errors else "ok"
        )
        print(f"{name}: {outcome}", flush=True)
        if errors:
            print(errors, file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
