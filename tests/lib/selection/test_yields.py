"""Yield by group: counts of prompts, images drawn and published, in run.json and the card."""

from __future__ import annotations

from pathlib import Path

import pytest

from rudalle_lib.checks.preflight import check_inputs
from rudalle_lib.dataset.manifests import read_shard_manifests
from rudalle_lib.errors import ConfigError
from rudalle_lib.selection import yields
from rudalle_lib.selection.yields import NO_GROUP, OTHERS, measure_yields, render_yields
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finish
from tests.support.image_numbers import numbered

PUBLISH = {"yield_by": "theme", "gallery": False, "contact_sheet": 0}


def test_a_run_counts_by_the_values_of_a_column(tmp_path: Path) -> None:
    config = numbered(
        tmp_path, "out", generate={"images": 2}, score={"keep_best": 1}, publish=PUBLISH
    )
    run = finish(config)
    assert run.yields == {
        NO_GROUP: {"prompts": 1, "drawn": 0, "published": 0},  # its translation failed
        "colour": {"prompts": 1, "drawn": 2, "published": 1},
        "malevich": {"prompts": 2, "drawn": 5, "published": 2},
    }
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "## Yield" in card and "| malevich | 2 | 5 | 2 | 40% |" in card
    assert "| **all** | 4 | 7 | 3 | 43% |" in card
    none = measure_yields(
        Storage(config.output), read_shard_manifests(Storage(config.output)), "other"
    )
    assert none == {NO_GROUP: {"prompts": 4, "drawn": 7, "published": 3}}
    with pytest.raises(ConfigError, match=r"expected one of theme, found 'themes'"):
        check_inputs(numbered(tmp_path, "out", publish={**PUBLISH, "yield_by": "themes"}))


def test_small_groups_are_one_more_if_there_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = numbered(tmp_path, "out", generate={"images": 1}, publish=PUBLISH)
    finish(config)
    monkeypatch.setattr(yields, "MAX_GROUPS", 1)
    storage = Storage(config.output)
    found = measure_yields(storage, read_shard_manifests(storage), "theme")
    assert list(found) == ["malevich", OTHERS] and found[OTHERS]["prompts"] == 2


def test_without_groups_there_is_no_table() -> None:
    assert render_yields({}, "theme") == ""
    empty = {"a|b": {"prompts": 1, "drawn": 0, "published": 0}}
    assert "| a&#124;b | 1 | 0 | 0 | 0% |" in render_yields(empty, "theme")
