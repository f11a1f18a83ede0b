"""Batches of items that have something in common, such as images of one size.

On a GPU all batches have equally many rows. Its libraries choose a kernel by the size of the batch,
and kernels round differently: with fixed rows an image has the same bits alone and among others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from rudalle_lib.runtime.memory import free_unused_memory, in_fitting_batches, is_out_of_memory

Result = TypeVar("Result")

OnProgress = Callable[[int, int], None]
"""Called with (finished units, all units); it may raise to stop the work."""


def no_progress(done: int, total: int) -> None:
    """Ignore progress."""


class FixedRows:
    """Applies networks to batches that are filled up to a number of rows on GPUs.

    Args:
        rows: images per batch. If memory runs out, batches are filled up to half as many.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def apply(self, network: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """Apply a network to inputs [B, ...], B >= 1.

        Returns:
            What the network returns for them, [B, ...].
        """
        if inputs.device.type == "cpu":
            return network(inputs)
        count = len(inputs)
        while self.rows > count:
            try:
                return network(_filled_up(inputs, self.rows))[:count]
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            self.rows = max(count, self.rows // 2)
            free_unused_memory()
        return network(inputs)


def _filled_up(inputs: Tensor, rows: int) -> Tensor:
    """Inputs with copies of the last one: [B, ...] -> [rows, ...]."""
    return torch.cat((inputs, inputs[-1:].expand(rows - len(inputs), *inputs.shape[1:])))


def group_by_key(keys: Sequence[Hashable], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of equal keys, each in order; keys come in order of first appearance."""
    by_key: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        by_key[key].append(index)
    for indices in by_key.values():
        for start in range(0, len(indices), batch_size):
            yield indices[start : start + batch_size]


def map_batches(
    keys: Sequence[Hashable],
    batch_size: int,
    work: Callable[[Sequence[int]], Sequence[Result]],
    what: str,
    on_progress: OnProgress = no_progress,
) -> list[Result]:
    """Process items in batches of equal keys, and in smaller batches if memory runs out.

    Args:
        keys: one per item, such as the size of an image.
        batch_size: items per batch, at most.
        work: gets the indices of a batch, returns one result per index.
        what: one item in words, for the error, as in "decoding a single image".
        on_progress: called after every batch with finished and all items.

    Returns:
        One result per item, in the order of `keys`.

    Raises:
        OutOfMemoryError: a batch of one item does not fit into memory.
    """
    results: dict[int, Result] = {}
    for batch, made in in_fitting_batches(group_by_key(keys, batch_size), work, what):
        results.update(zip(batch, made, strict=True))
        on_progress(len(results), len(keys))
    return [results[index] for index in range(len(keys))]
