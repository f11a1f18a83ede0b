"""What cells mean: each kind of value that tables of all formats hold."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from rudalle_lib.prompts.cells import RejectedError, checked_id, is_missing, overrides_of


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a.B_c-1", "a.B_c-1"),
        (" a\t", "a"),
        (0, "0"),
        (12, "12"),
        (12.0, "12"),
        (Decimal("12"), "12"),
        (Decimal("12.00"), "12"),
        (Decimal("1E+3"), "1000"),
        (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        ("12.0", "12.0"),
    ],
)
def test_an_id_has_one_text(value: Any, expected: str) -> None:
    assert checked_id(value) == expected


@pytest.mark.parametrize(
    "value",
    [True, 1.5, 2.0**53, math.inf, -1, Decimal("1.5"), Decimal("1E+80"), Decimal("NaN"), "a b",
     "a\n", "кот", "../x", b"a", [], {}, "x" * 65, 10**70],
)  # fmt: skip
def test_what_is_no_id_is_rejected(value: Any) -> None:
    with pytest.raises(RejectedError) as error:
        checked_id(value)
    assert error.value.reason == "bad_prompt_id" and len(error.value.detail) < 250


@pytest.mark.parametrize("value", [None, "", " ", "\t\n", math.nan, "\u2003"])
def test_an_empty_cell_gives_nothing(value: Any) -> None:
    assert is_missing(value)
    assert overrides_of([("images", value), ("seed", value)]) == {}


@pytest.mark.parametrize(
    ("value", "expected"),
    [("8", 8), (" 8 ", 8), ("8.0", 8), (8.0, 8), (Decimal(8), 8), (Decimal("8.0"), 8), ("+8", 8)],
)
def test_a_number_has_many_spellings(value: Any, expected: int) -> None:
    assert overrides_of([("images", value)]) == {"images": expected}


@pytest.mark.parametrize(
    "value",
    [True, "0x8", "8,0", Decimal("8.5"), Decimal("1E+99"), "9" * 5000, 10**400, [], b"8", "nan"],
)
def test_what_is_no_number_is_rejected(value: Any) -> None:
    with pytest.raises(RejectedError) as error:
        overrides_of([("images", value)])
    assert error.value.reason == "bad_override" and len(error.value.detail) < 250
