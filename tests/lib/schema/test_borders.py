"""Borders: many spellings, one meaning, one stored form."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rudalle_lib.schema.borders import Borders


@pytest.mark.parametrize(
    "value",
    [
        "up=4 left=2",
        "left:2, up:4",
        " up=4;left=2;down=0 ",
        '{"up": 4, "left": 2, "right": 0}',
        {"up": 4, "left": 2.0, "down": None},
        {"left": "2", "up": "4"},
    ],
)
def test_spellings_mean_the_same(value: Any) -> None:
    assert Borders.parse(value) == Borders(up=4, left=2)
    assert str(Borders.parse(value)) == "up=4 left=2"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("up", "up: expected a whole number of tokens, found ''"),
        ("up=x", "found 'x'"),
        ("up=1.5", "found '1.5'"),
        ("up=4 up=5", "expected sides such as"),
        ("", "expected sides such as"),
        ("top=4", "expected up, down, left and right, found 'top'"),
        ("up=0", "at least 1 token"),
        ("up=-1", r"expected 0 \.\.\. 1024 tokens, found -1"),
        ("up=1025", "found 1025"),
        ("{up: 4}", "not a JSON object"),
        ({"up": True}, "found True"),
        ({"up": float("inf")}, "found inf"),
        ({"up": [4]}, "found"),
        (4, "expected sides"),
        (["up", 4], "expected sides"),
    ],
)
def test_what_is_wrong_is_said(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Borders.parse(value)


SIDES = st.tuples(*[st.integers(0, 1024)] * 4).filter(any)


@given(SIDES)
def test_the_stored_form_is_read_back(sides: tuple[int, int, int, int]) -> None:
    borders = Borders(*sides)
    assert Borders.parse(str(borders)) == borders


@given(st.one_of(st.text(), st.dictionaries(st.text(), st.integers() | st.floats() | st.text())))
def test_anything_else_is_an_error_of_value(value: Any) -> None:
    with contextlib.suppress(ValueError):
        Borders.parse(value)
