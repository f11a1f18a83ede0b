"""The packaged models pass their checks, and the package says so of exactly these files."""

from __future__ import annotations

from rudalle_lib.weights.passed_checks import PASSED
from tools.check_demo_models import check_demo_models


def test_what_has_passed_is_what_the_package_notes() -> None:
    """If not: `python -m tools.check_demo_models`."""
    assert PASSED.read_text("utf-8") == check_demo_models()
