"""Splits are decided by the text alone."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.splits import split_of, with_splits
from rudalle_lib.errors import ConfigError

SPLITS = {"train": 0.9, "validation": 0.1}


def test_the_shares_are_those_asked_for() -> None:
    counts = Counter(split_of(f"круг {number}", SPLITS) for number in range(10_000))
    assert 8_850 < counts["train"] < 9_150 and counts["train"] + counts["validation"] == 10_000


def test_known_texts_stay_in_their_splits_between_releases() -> None:
    texts = ["круг", "квадрат", "крест", "a red circle", ""]
    found = [split_of(text, {"a": 0.5, "b": 0.5}) for text in texts]
    assert found == ["b", "a", "a", "b", "b"]


@given(st.text())
def test_neither_order_nor_rounding_matters(text: str) -> None:
    assert split_of(text, SPLITS) == split_of(text, dict(reversed(SPLITS.items())))
    assert split_of(text, {"a": 1e-9, "b": 1 - 2e-7}) in ("a", "b")


def test_a_larger_first_split_only_takes_prompts_from_the_other() -> None:
    for text in map(str, range(500)):
        if split_of(text, {"a": 0.5, "b": 0.5}) == "a":
            assert split_of(text, {"a": 0.6, "b": 0.4}) == "a"


def test_the_split_is_the_first_pass_through_column_and_follows_the_text() -> None:
    extras = pa.table({"prompt_id": ["p", "q"], "split": ["mine", "mine"]})
    found = with_splits(extras, {"p": "круг", "q": "круг"}, {"a": 0.5, "b": 0.5})
    assert found.column_names == ["prompt_id", "split", "split"]
    assert found.column(1).to_pylist() == ["b", "b"]
    assert with_splits(extras, {}, None) is extras and with_splits(extras, {}, {}) is extras


@pytest.mark.parametrize(
    "splits", ["{train: 0.9}", "{train: 0.9, validation: 0.2}", "{train: 1, test: 0}", "{00: 1}"]
)
def test_shares_add_up_to_one_and_names_are_folders(splits: str) -> None:
    with pytest.raises(ConfigError, match=r"publish\.splits"):
        RunConfig.parse(f"publish: {{splits: {splits}}}")
