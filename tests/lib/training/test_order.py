"""The order of examples: every epoch has each of them, and no split of the work changes it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rudalle_lib.training.order import Order, shares

SEEDS = st.integers(-(2**63), 2**63 - 1)
REPEATS = st.lists(st.integers(1, 3), min_size=1, max_size=20)


@given(REPEATS, SEEDS, st.integers(0, 5))
def test_an_epoch_has_each_example_as_often_as_it_is_repeated(
    repeats: list[int], seed: int, epoch: int
) -> None:
    order = Order(repeats, seed)
    length = order.epoch_length
    rows = order.rows(epoch * length, (epoch + 1) * length)
    assert Counter(rows) == Counter(dict(enumerate(repeats)))


@given(REPEATS, SEEDS, st.integers(0, 40), st.lists(st.integers(0, 30), max_size=6))
def test_positions_are_the_same_however_they_are_read(
    repeats: list[int], seed: int, first: int, lengths: list[int]
) -> None:
    order = Order(repeats, seed)
    whole = Order(repeats, seed).rows(first, first + sum(lengths))
    parts: list[int] = []
    for length in lengths:
        start = first + len(parts)
        parts += order.rows(start, start + length)
    assert parts == whole


@given(
    st.integers(1, 40),
    st.integers(1, 8),
    st.one_of(st.none(), st.integers(1, 12)),
    st.integers(0, 20),
)
def test_processes_and_parts_see_together_what_one_process_sees(
    batch_size: int, processes: int, at_once: int | None, step: int
) -> None:
    order = Order([1] * 17, seed=5)
    whole = order.rows_of_step(step, batch_size, range(batch_size))
    split = [shares(batch_size, processes, process, at_once) for process in range(processes)]
    counted = [share for parts in split for share in parts if share.counted]
    rows = [order.rows_of_step(step, batch_size, share.rows) for share in counted]
    assert sum(rows, []) == whole
    assert len({len(parts) for parts in split}) == 1  # all processes keep in step
    for parts in split:
        for share in parts:
            assert 1 <= len(share.rows) <= (at_once or batch_size)
            assert share.counted in (0, len(share.rows))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    order = Order([1] * 50, seed=1)
    first, second = order.rows(0, 50), order.rows(50, 100)
    assert first != second
    assert first != Order([1] * 50, seed=2).rows(0, 50)


def test_the_order_is_the_same_on_all_machines_and_versions() -> None:
    assert Order([1] * 10, seed=1).rows(0, 12) == [3, 5, 2, 9, 7, 0, 8, 6, 1, 4, 0, 6]


@pytest.mark.parametrize("repeats", [[], [1, 0]])
def test_no_example_and_no_repeat_are_refused(repeats: list[int]) -> None:
    with pytest.raises(ValueError, match="expected at least one example, and 1 or more for each"):
        Order(repeats)
