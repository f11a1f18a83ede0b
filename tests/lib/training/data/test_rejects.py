"""The reasons of rejects, and their table in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

from rudalle_lib.training.data.rejects import DATA_REASONS, MEANINGS

PAGE = Path(__file__).resolve().parents[4] / "docs" / "training-data.md"


def test_every_reason_has_a_meaning_and_is_documented_with_it() -> None:
    assert tuple(MEANINGS) == DATA_REASONS
    documented = re.findall(r"^\| `([a-z_]+)` \| (.*) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert dict(documented) == MEANINGS
