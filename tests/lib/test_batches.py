"""Batches of equal keys hold every index once, in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rudalle_lib.batches import alike


def test_one_key_is_cut_as_a_list_is() -> None:
    assert list(alike(["a"] * 5, 2)) == [[0, 1], [2, 3], [4]]


@given(st.lists(st.sampled_from("abc")), st.integers(1, 4))
def test_every_index_once_and_only_equal_keys_together(keys: list[str], size: int) -> None:
    batches = list(alike(keys, size))
    assert sorted(index for batch in batches for index in batch) == list(range(len(keys)))
    assert all(len({keys[index] for index in batch}) == 1 for batch in batches)
    assert all(0 < len(batch) <= size for batch in batches)
