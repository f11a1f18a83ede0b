"""How far datasets are apart: known statistics, limits, and what cannot be compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rudalle_lib.comparison.drift import (
    MEASURES,
    MIN_GROUP,
    compare_figures,
    parse_limits,
    score_distance,
)
from rudalle_lib.comparison.sample import EMBEDDINGS
from rudalle_lib.errors import ConfigError
from tests.support.figures import made_up, slice_of

LOW, HIGH = [0.1] * MIN_GROUP, [0.9] * MIN_GROUP
BEFORE = made_up("a", {"x": slice_of(LOW, 40), "y": slice_of(LOW + HIGH, 80)}, cost=0.5)
AFTER = made_up(
    "b",
    {"x": slice_of(LOW, 80), "y": slice_of(HIGH + HIGH, 80), "z": slice_of([0.5], 1)},
    diversity=0.3,
    duplicates=0.02,
    seconds=3.0,
    cost=0.25,
)


def test_measures_are_what_the_documentation_says() -> None:
    drift = compare_figures(BEFORE, AFTER).drift
    assert drift["acceptance"] == pytest.approx(60 / 120 - 61 / 161)
    assert drift["group_acceptance"] == pytest.approx(0.25)
    assert drift["score"] == pytest.approx(40 / 60 - 20 / 61)
    assert drift["group_score"] == pytest.approx(0.5)
    assert drift["diversity"] == pytest.approx(0.1)
    assert drift["duplicates"] == pytest.approx(0.02)
    assert drift["seconds"] == pytest.approx(0.5) and drift["cost"] == pytest.approx(0.5)


def test_a_dataset_does_not_differ_from_itself() -> None:
    assert set(compare_figures(BEFORE, BEFORE).drift.values()) == {0.0}


def test_small_groups_do_not_count() -> None:
    small = made_up("b", {"x": slice_of(HIGH[1:], 1000), "y": BEFORE.groups["y"]}, cost=0.5)
    drift = compare_figures(BEFORE, small).drift
    assert drift["group_score"] == drift["group_acceptance"] == 0.0
    assert compare_figures(made_up("a", {}), AFTER).drift["group_score"] is None


def test_the_documented_noise_of_scores() -> None:
    """Two samples of one distribution: the 95% quantiles that docs/operations.md names."""
    for images, expected in ((100, 0.19), (1000, 0.06)):
        random = np.random.default_rng(images)
        apart = [
            score_distance(list(random.random(images)), list(random.random(images)))
            for _ in range(200)
        ]
        assert np.quantile([one or 0.0 for one in apart], 0.95) == pytest.approx(expected, rel=0.1)


def test_limits_are_exceeded_only_beyond_them() -> None:
    limits = parse_limits(["diversity=0.1,score=0.9", "cost = 0.4"])
    assert limits == {"diversity": 0.1, "score": 0.9, "cost": 0.4}
    same = replace(AFTER, sample=replace(AFTER.sample, diversity=0.4))
    assert compare_figures(BEFORE, same, limits).exceeded == ["cost"]
    assert compare_figures(BEFORE, AFTER, parse_limits(["duplicates=0"])).exceeded == ["duplicates"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scores=0.1", r"no measure 'scores' \(did you mean score\?\): expected one of acceptance"),
        ("score", "expected a measure and a number, such as acceptance=0.05"),
        ("score=much", "must be a number of at least 0, found much"),
        ("score=-1", "must be a number of at least 0, found -1"),
        ("score=nan", "must be a number of at least 0, found nan"),
        ("", "expected a measure and a number"),
    ],
)
def test_wrong_limits_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_limits([text])


def test_a_limit_of_something_that_is_not_there_is_an_error() -> None:
    without = replace(AFTER, cost=None)
    with pytest.raises(
        ConfigError, match="The limit of cost cannot be checked: /data/a or /data/b"
    ):
        compare_figures(BEFORE, without, {"cost": 0.1})
    other = replace(AFTER, sample=replace(AFTER.sample, method=EMBEDDINGS))
    assert compare_figures(BEFORE, other).drift["diversity"] is None
    assert parse_limits([]) == {} and "cost" in MEASURES


def test_a_figure_that_was_zero_has_changed_without_bound() -> None:
    free = replace(BEFORE, cost=0.0)
    assert compare_figures(free, AFTER).drift["cost"] == float("inf")
    assert compare_figures(free, free).drift["cost"] == 0.0
