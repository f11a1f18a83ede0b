"""`make cross-check` names compilers that are missing, and fails on sources that do not compile."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import cross_check
from tests.support.compiled import needs_compiler


def test_a_missing_compiler_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cross_check, "TARGETS", {"a chip": ("no-such-g++", ())})
    assert cross_check.main() == 0
    assert capsys.readouterr().out == "a chip: not tried, no-such-g++ is not installed\n"


@needs_compiler
def test_a_source_that_does_not_compile_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cross_check, "SOURCES", tmp_path)
    monkeypatch.setattr(cross_check, "TARGETS", {"this machine": ("c++", ())})
    (tmp_path / "good.cpp").write_text("int one() { return 1; }\n")
    assert cross_check.main() == 0
    (tmp_path / "bad.cpp").write_text("int one() { return two; }\n")
    assert cross_check.main() == 1
    output = capsys.readouterr()
    assert "this machine: failed" in output.out and "bad.cpp" in output.err


@needs_compiler
def test_old_compilers_are_told_what_is_needed() -> None:
    text = (cross_check.SOURCES / "vectors.h").read_text("utf-8")
    assert "The kernels need GCC 11 or newer, or Clang 14 or newer." in text
