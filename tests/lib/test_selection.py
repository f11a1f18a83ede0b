"""Selection: every image is kept or has a reason; thresholds and ranks do what they say."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rudalle_lib.config import RunConfig, ScoreConfig
from rudalle_lib.errors import ConfigError
from rudalle_lib.records import ScoreRecord
from rudalle_lib.selection import is_kept, rank, why_rejected


def scored(score: float, place: int = 1) -> ScoreRecord:
    return ScoreRecord("a-000", "a", score, place)


def test_ranks_count_within_a_prompt_and_the_highest_score_is_first() -> None:
    prompts = ["a", "b", "a", "b", "a"]
    assert rank(prompts, [0.1, 0.9, 0.3, 0.8, 0.2]) == [3, 1, 1, 2, 2]


def test_equal_scores_keep_their_order_and_no_number_comes_last() -> None:
    assert rank(["a"] * 4, [math.nan, 0.5, 0.5, -1.0]) == [4, 1, 2, 3]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(-1, 1)), max_size=20))
def test_the_ranks_of_each_prompt_are_one_two_three(rows: list[tuple[str, float]]) -> None:
    prompts = [prompt for prompt, _ in rows]
    ranks = rank(prompts, [score for _, score in rows])
    for prompt in set(prompts):
        own = sorted(place for name, place in zip(prompts, ranks, strict=True) if name == prompt)
        assert own == list(range(1, len(own) + 1))


@pytest.mark.parametrize(
    ("score", "place", "reason"),
    [
        (0.30, 1, None),
        (0.20, 2, None),
        (0.30, 3, "not_in_best_k"),
        (0.19, 1, "below_threshold"),
        (0.19, 3, "below_threshold"),
        (math.nan, 1, "below_threshold"),
    ],
)
def test_an_image_is_kept_or_has_its_reason(score: float, place: int, reason: str | None) -> None:
    selection = ScoreConfig(min_score=0.2, keep_best=2)
    found = why_rejected(scored(score, place), selection)
    assert (found[0] if found else None) == reason
    assert is_kept(scored(score, place), selection) == (reason is None)


def test_an_unsafe_image_is_never_kept_however_good() -> None:
    selection = ScoreConfig(keep_best=2, unsafe_texts=("кровь",), max_unsafe=0.25)
    image = replace(scored(0.9), unsafe=0.26)
    expected = ("unsafe", "0.260 alike one of score.unsafe_texts, at most 0.250 is kept")
    assert why_rejected(image, selection) == expected
    assert is_kept(replace(image, unsafe=0.25), selection)
    assert is_kept(image, ScoreConfig(unsafe_texts=("кровь",)))


def test_what_is_unsafe_must_be_said() -> None:
    with pytest.raises(ConfigError, match="max_unsafe needs unsafe_texts"):
        RunConfig.parse("score: {max_unsafe: 0.2}")


def test_without_limits_everything_is_kept() -> None:
    assert is_kept(scored(-1.0, 99), ScoreConfig())


def test_an_image_without_a_score_is_never_kept() -> None:
    found = why_rejected(scored(math.nan), ScoreConfig())
    assert found == ("below_threshold", "the score is not a number")


def test_the_reason_for_people_has_the_figures() -> None:
    found = why_rejected(scored(0.123, 5), ScoreConfig(keep_best=2))
    assert found == ("not_in_best_k", "place 5 with score 0.123, the best 2 are kept")
