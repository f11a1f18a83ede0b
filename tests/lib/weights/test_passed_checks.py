"""A check that has passed is not run again; one that failed is, and so is one of something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from rudalle_lib.errors import WeightsError
from rudalle_lib.weights import passed_checks
from rudalle_lib.weights.passed_checks import check_once, packaged_checks


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_check_runs_once_per_input(cache: Path) -> None:
    ran: list[str] = []
    for what in ("a", "a", "b", "a"):
        check_once({"digest": what}, lambda what=what: ran.append(what))  # type: ignore[misc]
    assert ran == ["a", "b"]
    assert len(list((cache / "rudalle-flows" / "passed").iterdir())) == 2


def test_a_failed_check_runs_again(cache: Path) -> None:
    def fail() -> None:
        raise WeightsError("damaged")

    for _ in range(2):
        with pytest.raises(WeightsError, match="damaged"):
            check_once("a", fail)
    assert not cache.exists()


def test_without_a_cache_every_check_runs(cache: Path) -> None:
    cache.write_text("a file in the way")
    ran: list[int] = []
    for number in range(2):
        check_once("a", lambda number=number: ran.append(number))  # type: ignore[misc]
    assert ran == [0, 1]


def test_what_the_package_notes_is_not_checked_unless_checks_have_changed(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = cache.parent / "passed_checks.json"
    notes.write_text(packaged_checks([["files", "decoder", "a"]]))
    monkeypatch.setattr(passed_checks, "PASSED", notes)
    ran: list[str] = []
    for version in (passed_checks.VERSION, passed_checks.VERSION + 1):
        monkeypatch.setattr(passed_checks, "VERSION", version)
        passed_checks._packaged.cache_clear()
        for what in "ab":
            check_once(["files", "decoder", what], lambda what=what: ran.append(what))  # type: ignore[misc]
    assert ran == ["b", "a", "b"]
    passed_checks._packaged.cache_clear()
