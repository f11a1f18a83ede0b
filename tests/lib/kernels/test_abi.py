"""The structures and constants of the compiled library are those of Python."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from rudalle_lib import kernels
from rudalle_lib.kernels import abi
from tests.support.compiled import needs_kernels

SOURCES = Path(kernels.__file__).parent / "csrc"


def library() -> ctypes.CDLL:
    found = kernels._library()
    assert found is not None, "a compiler is present, but the kernels are not available"
    return found


@needs_kernels
def test_the_built_library_matches() -> None:
    assert abi.mismatches(library()) == []


@needs_kernels
def test_a_different_constant_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(abi.CONSTANTS, "MAX_GROUP", 16)
    assert abi.mismatches(library()) == ["constant_MAX_GROUP: expected 16, found 8"]


@needs_kernels
def test_a_different_structure_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    class LinearArgs(ctypes.Structure):
        _fields_ = (*abi.LinearArgs._fields_, *abi.int_fields("new"))

    monkeypatch.setattr(abi, "STRUCTURES", (abi.Call, LinearArgs))
    size = ctypes.sizeof(abi.LinearArgs)
    assert abi.mismatches(library()) == [f"sizeof_LinearArgs: expected {size + 8}, found {size}"]


def test_a_library_without_exports_is_reported() -> None:
    """As one that was built before the library exported anything."""
    differences = abi.mismatches(ctypes.CDLL(None))  # this process itself
    assert len(differences) == len(abi.CONSTANTS) + len(abi.STRUCTURES)
    assert differences[0] == f"constant_ABI_VERSION: expected {abi.ABI_VERSION}, found nothing"


def declared_fields(structure: str) -> list[str]:
    """The names of the fields of a structure in the C++ sources, in their order."""
    sources = "\n".join(path.read_text("utf-8") for path in sorted(SOURCES.iterdir()))
    match = re.search(rf"struct {structure} {{\n(.*?)\n}};", sources, re.DOTALL)
    assert match, f"no struct {structure} in {SOURCES}"
    body = re.sub(r"//[^\n]*", "", match[1])
    body = re.sub(r"\(\*(\w+)\)\([^)]*\)", r"\1", body)  # a function pointer
    declarations = [line.strip() for line in body.split(";") if line.strip()]
    return [
        re.sub(r"\[\w+\]", "", name).split()[-1].lstrip("*")
        for declaration in declarations
        for name in declaration.split(",")
    ]


@pytest.mark.parametrize("structure", abi.STRUCTURES, ids=lambda kind: kind.__name__)
def test_fields_have_the_names_and_order_of_the_sources(
    structure: type[ctypes.Structure],
) -> None:
    names = [field[0] for field in structure._fields_]
    assert declared_fields(structure.__name__) == names
