"""A table may unpack to a multiple of its size, in bytes, rows and values."""

from __future__ import annotations

import pytest

from rudalle_lib.errors import PromptError
from rudalle_lib.prompts import budgets
from rudalle_lib.prompts.budgets import Budget


def test_a_table_may_unpack_to_a_multiple_of_its_size() -> None:
    budget = Budget("t")
    budget.spend(budgets.FREE_BYTES)
    budget.feed(10)
    budget.spend(10 * budgets.MAX_RATIO)
    with pytest.raises(PromptError, match="t unpacks to more than 134,220,288 bytes"):
        budget.spend(1)


def test_rows_and_empty_values_count() -> None:
    rows = budgets.FREE_BYTES // budgets.ROW_BYTES
    budget = Budget("t")
    budget.check_rows(rows)
    budget.spend(rows=rows)
    with pytest.raises(PromptError, match="unpacks to more than"):
        budget.check_rows(1)
    with pytest.raises(PromptError, match="too many columns for its size, most of them empty"):
        Budget("t").spend(rows=10_000, columns=2_000)


def test_a_million_honest_rows_are_far_below_the_bound() -> None:
    """A million prompts that differ in a number, in one of the smallest files for them."""
    budget = Budget("t")
    budget.feed(4_000_000)
    budget.spend(30_000_000, rows=1_000_000, columns=5)
