"""Selection: every image is kept or has a reason; thresholds and ranks do what they say."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rudalle_lib.records import ScoreRecord
from rudalle_lib.selection import select

TEXTS = {"a": "чёрный квадрат", "b": "красный круг"}


def scored(prompt_id: str, values: list[float]) -> list[ScoreRecord]:
    order = sorted(range(len(values)), key=lambda i: -values[i])
    rank = {index: place for place, index in enumerate(order, start=1)}
    return [
        ScoreRecord(f"{prompt_id}-{i:03d}", prompt_id, v, rank[i]) for i, v in enumerate(values)
    ]


def test_without_limits_everything_is_kept_in_order() -> None:
    scores = scored("a", [0.1, 0.3, 0.2])
    assert select(scores, TEXTS).kept == tuple(scores)


def test_the_best_of_each_prompt_are_kept() -> None:
    scores = scored("a", [0.1, 0.3, 0.2]) + scored("b", [0.9, 0.8])
    selection = select(scores, TEXTS, keep_best=1)
    assert [kept.image_id for kept in selection.kept] == ["a-001", "b-000"]
    assert {r.reason for r in selection.rejects} == {"not_in_best_k"}
    assert selection.rejects[0].detail == "rank 3 by score 0.100, the best 1 are kept"


def test_a_low_score_is_named_before_a_low_rank() -> None:
    selection = select(scored("a", [0.1, 0.3]), TEXTS, min_score=0.2, keep_best=1)
    (rejected,) = selection.rejects
    assert (rejected.reason, rejected.image_id) == ("below_threshold", "a-000")
    assert rejected.text == "чёрный квадрат"


def test_a_score_that_is_not_a_number_never_passes_a_threshold() -> None:
    assert not select([ScoreRecord("a-000", "a", math.nan, 1)], TEXTS, min_score=-1.0).kept


@pytest.mark.parametrize("keep_best", [None, 1, 3])
@given(values=st.lists(st.floats(-1, 1), max_size=12), minimum=st.none() | st.floats(-1, 1))
def test_nothing_is_lost_and_nothing_is_twice(
    values: list[float], minimum: float | None, keep_best: int | None
) -> None:
    scores = scored("a", values)
    selection = select(scores, TEXTS, minimum, keep_best)
    ids = [s.image_id for s in selection.kept] + [str(r.image_id) for r in selection.rejects]
    assert sorted(ids) == sorted(s.image_id for s in scores)
    assert len(selection.kept) <= (keep_best or len(values))
