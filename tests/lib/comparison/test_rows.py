"""What people and scripts read of a comparison."""

from __future__ import annotations

import json

import pytest

from rudalle_lib.comparison.drift import compare_figures, parse_limits
from rudalle_lib.comparison.rows import (
    MISSING,
    comparison_markdown,
    comparison_rows,
    comparison_values,
)
from tests.support.figures import made_up, slice_of

BEFORE = made_up(
    "a|b", {"x": slice_of([0.2, 0.4] * 20, 80)}, rejected={"below_threshold": 40}, cost=0.001
)
AFTER = made_up(
    "c", {"x": slice_of([0.2] * 20, 80), "<y>": slice_of([], 0)}, rejected={"unsafe": 3}, cost=0.002
)
FOUND = compare_figures(BEFORE, AFTER, parse_limits(["acceptance=0.3,score=0.1"]))


def test_rows_have_both_figures_and_how_far_they_are_apart() -> None:
    rows = {row.label: row for row in comparison_rows(FOUND)}
    acceptance, score = rows["Acceptance"], rows["Mean score"]
    assert (acceptance.before, acceptance.after) == ("50.0%", "25.0%")
    assert acceptance.change == "25.0 points, within 0.3"
    assert (score.before, score.after) == ("0.300", "0.200")
    assert score.change == "KS 0.500, more than 0.1"
    assert FOUND.exceeded == ["score"]
    assert (rows["... unsafe"].before, rows["... unsafe"].after) == ("0", "3")
    assert rows["Cost per published image"].change == "100%"
    assert rows["Device time per published image"].before == "2 s"


def test_what_a_dataset_lacks_is_marked() -> None:
    empty = made_up("e", {}, diversity=None, duplicates=None, seconds=None)
    rows = {row.label: row for row in comparison_rows(compare_figures(BEFORE, empty))}
    assert rows["Acceptance"].after == rows["Mean score"].after == MISSING
    assert rows["Acceptance"].change == rows["Cost per published image"].change == MISSING


def test_markdown_has_a_table_of_figures_and_one_of_groups() -> None:
    text = comparison_markdown(FOUND)
    assert text.startswith("# a&#124;b and c\n")
    assert "| Published images | 40 | 20 |  |" in text
    assert "| x | 50.0% | 25.0% | 0.300 | 0.200 |" in text
    assert "<y>" not in text
    without = compare_figures(made_up("a", {}), made_up("b", {}))
    assert "| group |" not in comparison_markdown(without)


def test_json_has_everything() -> None:
    values = json.loads(json.dumps(comparison_values(FOUND)))
    assert values["exceeded"] == ["score"] and values["limits"] == {"acceptance": 0.3, "score": 0.1}
    assert values["drift"]["acceptance"] == 0.25
    assert values["before"]["output"] == "/data/a|b" and values["after"]["published"] == 20
    assert values["before"]["score_quantiles"]["0.5"] == pytest.approx(0.3)
    assert values["groups"]["x"]["counts"] and values["groups"]["x"]["score"] == 0.5
    assert not values["groups"]["<y>"]["counts"] and values["groups"]["<y>"]["score"] is None
