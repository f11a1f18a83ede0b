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
from rudalle_lib.selection import kept, rank, rejections


def images(*scores: float) -> list[ScoreRecord]:
    """Scored images of one prompt."""
    places = rank(["a"] * len(scores), scores)
    return [
        ScoreRecord(f"a-{number:03}", "a", score, place)
        for number, (score, place) in enumerate(zip(scores, places, strict=True))
    ]


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


def test_every_image_is_kept_or_has_its_reason() -> None:
    rows = images(0.30, 0.20, 0.25, 0.19, math.nan)
    found = rejections(rows, ScoreConfig(min_score=0.2, keep_best=2))
    assert {name: reason for name, (reason, _) in found.items()} == {
        "a-001": "not_in_best_k", "a-003": "below_threshold", "a-004": "below_threshold",
    }  # fmt: skip
    assert kept(rows, ScoreConfig(min_score=0.2, keep_best=2)) == {"a-000", "a-002"}


def test_an_unsafe_image_is_never_kept_and_the_next_best_moves_up() -> None:
    selection = ScoreConfig(keep_best=2, unsafe_texts=("кровь",), max_unsafe=0.25)
    best, *others = images(0.9, 0.8, 0.7, 0.6)
    rows = [replace(best, unsafe=0.26), *(replace(row, unsafe=0.25) for row in others)]
    assert rejections(rows, selection) == {
        "a-000": ("unsafe", "0.260 alike one of score.unsafe_texts, at most 0.250 is kept"),
        "a-003": ("not_in_best_k", "place 3 with score 0.600, the best 2 are kept"),
    }
    assert kept(rows, ScoreConfig(keep_best=2, unsafe_texts=("кровь",))) == {"a-000", "a-001"}


def test_what_is_unsafe_must_be_said() -> None:
    with pytest.raises(ConfigError, match="max_unsafe needs unsafe_texts"):
        RunConfig.parse("score: {max_unsafe: 0.2}")


def test_without_limits_everything_is_kept() -> None:
    assert not rejections(images(-1.0, -0.5), ScoreConfig())


def test_an_image_without_a_score_is_never_kept() -> None:
    found = rejections(images(math.nan), ScoreConfig())
    assert found == {"a-000": ("below_threshold", "the score is not a number")}
