"""Batches of equal keys contain every index once, in order."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rudalle_lib.runtime.batching import FixedRows, group_by_key, map_batches


def test_one_key_is_split_into_batches_in_order() -> None:
    assert list(group_by_key(["a"] * 5, 2)) == [[0, 1], [2, 3], [4]]


@given(st.lists(st.sampled_from("abc")), st.integers(1, 4))
def test_every_index_once_and_only_equal_keys_together(keys: list[str], size: int) -> None:
    batches = list(group_by_key(keys, size))
    assert sorted(index for batch in batches for index in batch) == list(range(len(keys)))
    assert all(len({keys[index] for index in batch}) == 1 for batch in batches)
    assert all(0 < len(batch) <= size for batch in batches)


@settings(max_examples=25)  # each time that memory runs out, garbage is collected
@given(st.lists(st.sampled_from("abc"), max_size=6), st.integers(1, 4), st.integers(1, 3))
def test_mapped_batches_keep_the_order_of_items(keys: list[str], size: int, capacity: int) -> None:
    """Also if only `capacity` items fit into memory."""
    progress = []

    def work(batch: Sequence[int]) -> list[int]:
        if len(batch) > capacity:
            raise MemoryError
        return [10 * index for index in batch]

    def on_progress(done: int, total: int) -> None:
        progress.append((done, total))

    results = map_batches(keys, size, work, "it", on_progress)
    assert results == [10 * index for index in range(len(keys))]
    assert progress == sorted(set(progress))
    assert not keys or progress[-1] == (len(keys), len(keys))


class PretendedGpu(torch.Tensor):
    """A tensor that says that it is on a GPU, and computes on the CPU."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)

    @device.setter
    def device(self, _: torch.device) -> None:
        pass


def test_batches_of_a_gpu_are_filled_up_and_those_of_a_cpu_are_not() -> None:
    seen: list[list[int]] = []

    def network(inputs: torch.Tensor) -> torch.Tensor:
        seen.append(inputs.flatten().tolist())
        return 10 * inputs

    rows = FixedRows(4)
    inputs = torch.tensor([[1], [2]])
    for one in (
        inputs,
        inputs.as_subclass(PretendedGpu),
        torch.ones(4, 1).as_subclass(PretendedGpu),
    ):
        assert torch.equal(rows.apply(network, one), 10 * one)
    assert seen == [[1, 2], [1, 2, 2, 2], [1, 1, 1, 1]]


def test_fewer_rows_are_filled_up_after_memory_ran_out() -> None:
    seen: list[int] = []

    def network(inputs: torch.Tensor) -> torch.Tensor:
        seen.append(len(inputs))
        if len(inputs) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inputs

    rows, inputs = FixedRows(9), torch.ones(5, 1).as_subclass(PretendedGpu)
    assert len(rows.apply(network, inputs[:2])) == 2
    assert seen == [9, 4, 2] and rows.rows == 2
    with pytest.raises(torch.OutOfMemoryError):  # the caller halves the batch
        rows.apply(network, inputs)
    with pytest.raises(ValueError, match="broken"):
        FixedRows(9).apply(broken, inputs)


def broken(inputs: torch.Tensor) -> torch.Tensor:
    """A network that fails for another reason."""
    raise ValueError("broken")
