"""Selection: each image is kept or rejected with a reason, by its score and rank."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.sections import ScoreConfig
from rudalle_lib.errors import ConfigError
from rudalle_lib.images.selection import contents_of, find_rejects, kept, rank
from rudalle_lib.schema.decisions import ByHand
from rudalle_lib.schema.records import ScoreRecord, TokensRecord


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


def test_equal_scores_keep_their_order_and_nan_comes_last() -> None:
    assert rank(["a"] * 4, [math.nan, 0.5, 0.5, -1.0]) == [4, 1, 2, 3]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(-1, 1)), max_size=20))
def test_the_ranks_of_each_prompt_are_one_two_three(rows: list[tuple[str, float]]) -> None:
    prompts = [prompt for prompt, _ in rows]
    ranks = rank(prompts, [score for _, score in rows])
    for prompt in set(prompts):
        own = sorted(place for name, place in zip(prompts, ranks, strict=True) if name == prompt)
        assert own == list(range(1, len(own) + 1))


def test_each_image_is_kept_or_rejected_with_a_reason() -> None:
    rows = images(0.30, 0.20, 0.25, 0.19, math.nan)
    found = find_rejects(rows, ScoreConfig(min_score=0.2, keep_best=2))
    assert {name: reason for name, (reason, _) in found.items()} == {
        "a-001": "not_in_best_k", "a-003": "below_threshold", "a-004": "below_threshold",
    }  # fmt: skip
    assert kept(rows, ScoreConfig(min_score=0.2, keep_best=2)) == {"a-000", "a-002"}


def test_an_unsafe_image_is_never_kept_and_the_next_best_moves_up() -> None:
    selection = ScoreConfig(keep_best=2, unsafe_texts=("кровь",), max_unsafe=0.25)
    best, *others = images(0.9, 0.8, 0.7, 0.6)
    rows = [replace(best, unsafe=0.26), *(replace(row, unsafe=0.25) for row in others)]
    assert find_rejects(rows, selection) == {
        "a-000": ("unsafe", "similarity 0.260 exceeds max_unsafe 0.250"),
        "a-003": ("not_in_best_k", "rank 3 with score 0.600 exceeds keep_best 2"),
    }
    assert kept(rows, ScoreConfig(keep_best=2, unsafe_texts=("кровь",))) == {"a-000", "a-001"}


def test_the_same_image_takes_one_place_and_the_next_best_moves_up() -> None:
    rows = images(0.9, 0.9, 0.8, 0.7)
    contents = {"a-000": "x", "a-001": "x", "a-002": "y", "a-003": "y"}
    assert find_rejects(rows, ScoreConfig(keep_best=2), contents) == {
        "a-001": ("same_image", "the same image as a-000, which is kept"),
        "a-003": ("same_image", "the same image as a-002, which is kept"),
    }
    assert kept(rows, ScoreConfig(), contents) == {"a-000", "a-002"}
    found = find_rejects(rows, ScoreConfig(keep_best=1), contents)
    assert found["a-003"].reason == "not_in_best_k"  # its twin is not kept, either


def test_only_images_of_one_prompt_are_compared() -> None:
    rows = [replace(row, prompt_id=name) for row, name in zip(images(0.9, 0.8), "ab", strict=True)]
    assert not find_rejects(rows, ScoreConfig(keep_best=1), {"a-000": "x", "a-001": "x"})


def test_images_are_the_same_if_tokens_and_their_arrangement_are() -> None:
    first = TokensRecord(
        "a-000", "a", 0, 5, [1, 2, 3, 4], -1.0, 2.0, 1.0, 0, 0.9, False, rows=2, columns=2
    )
    twin = replace(first, image_id="a-001", replica=1, seed=6)
    long = replace(first, image_id="a-002", rows=4, columns=1)
    other = replace(first, image_id="a-003", tokens=[1, 2, 3, 5])
    found = contents_of([first, twin, long, other])
    assert list(found) == ["a-000", "a-001", "a-002", "a-003"]
    assert found["a-000"] == found["a-001"] and len(set(found.values())) == 3


def test_max_unsafe_needs_unsafe_texts() -> None:
    with pytest.raises(ConfigError, match="max_unsafe needs unsafe_texts"):
        RunConfig.parse("score: {max_unsafe: 0.2}")


def test_without_limits_all_images_are_kept() -> None:
    assert not find_rejects(images(-1.0, -0.5), ScoreConfig())


def test_an_image_without_a_score_is_never_kept() -> None:
    found = find_rejects(images(math.nan), ScoreConfig())
    assert found == {"a-000": ("below_threshold", "the score is NaN or infinite")}


def test_decisions_by_hand_come_before_all_limits() -> None:
    selection = ScoreConfig(min_score=0.65, keep_best=2, unsafe_texts=("кровь",), max_unsafe=0.25)
    rows = images(0.9, 0.8, 0.7, 0.6, math.nan)
    by_hand = {
        "a-000": ByHand("reject", "two squares"),
        "a-003": ByHand("keep"),
        "a-004": ByHand("keep"),
    }
    rows[3] = replace(rows[3], unsafe=0.9)
    assert find_rejects(rows, selection, None, by_hand) == {
        "a-000": ("by_hand", "two squares"),
        "a-002": ("not_in_best_k", "rank 3 with score 0.700 exceeds keep_best 2"),
        "a-004": ("below_threshold", "the score is NaN or infinite"),
    }
    twins = {"a-001": "x", "a-003": "x"}
    found = find_rejects(rows, selection, twins, by_hand)
    assert found["a-001"] == ("same_image", "the same image as a-003, which is kept")
    assert "a-002" not in found
