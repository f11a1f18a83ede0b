"""Which examples a step learns from, and which of them a process takes: all from a seed.

Examples are seen epoch after epoch, each epoch in an order of its own. The order is a function of
the seed and the number of the epoch alone, so a resumed training goes on where it was, and any
number of processes sees together what one would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
"""Numbers of examples, int64 [n]."""

MASK = 2**64 - 1
"""Keys of the generator have 64 bits."""


class Order:
    """An endless sequence of examples: one epoch after the other.

    Args:
        repeats: how often an epoch has each example, integers [N], N at least 1, each at least 1.
        seed: any integer.

    Raises:
        ValueError: there is no example, or one without a repeat.
    """

    def __init__(self, repeats: Sequence[int] | Rows, seed: int = 0) -> None:
        times = np.asarray(repeats, np.int64)
        if not len(times) or times.min() < 1:
            raise ValueError(
                f"repeats: expected at least one example, and 1 or more for each, found {times}"
            )
        self._seed = seed
        self._examples = np.repeat(np.arange(len(times)), times)
        self._known: tuple[int, Rows] | None = None

    @property
    def epoch_length(self) -> int:
        """Positions of an epoch."""
        return len(self._examples)

    def rows(self, first: int, last: int) -> list[int]:
        """Return the examples at the positions from `first` up to, without, `last`."""
        found: list[int] = []
        while first < last:
            epoch, start = divmod(first, self.epoch_length)
            part = self._epoch(epoch)[start : start + last - first].tolist()
            found += part
            first += len(part)
        return found

    def rows_of_step(self, step: int, batch_size: int, part: range) -> list[int]:
        """Return the examples of a part of a step's batch.

        Args:
            step: number of the step, from 0.
            batch_size: examples per step, over all processes together.
            part: consecutive places in the batch, from 0 up to `batch_size`.
        """
        start = step * batch_size
        return self.rows(start + part.start, start + part.stop)

    def _epoch(self, epoch: int) -> Rows:
        """The examples of an epoch in its order.

        Sorted by raw numbers of Philox: unlike what numpy's `Generator` makes of them, they are
        the same in all versions of numpy.
        """
        if self._known is None or self._known[0] != epoch:
            key = np.array([self._seed & MASK, epoch], np.uint64)
            drawn = np.random.Philox(key=key).random_raw(self.epoch_length)
            self._known = epoch, self._examples[np.argsort(drawn, kind="stable")]
        return self._known[1]


@dataclass(frozen=True)
class Share:
    """What a process computes at once: consecutive rows of all.

    Attributes:
        rows: places of the rows among all, at least one.
        counted: how many of them count: all, or none if there is nothing left for the process,
            which then computes a row without weight, because processes have to keep in step.
    """

    rows: range
    counted: int


def shares(
    total: int, processes: int = 1, process: int = 0, at_once: int | None = None
) -> list[Share]:
    """Split rows over processes, and the rows of a process into parts that fit into memory.

    All processes get equally many parts. Together the parts count every row exactly once.

    Args:
        total: number of rows, at least 1.
        processes: number of processes.
        process: number of the process, from 0.
        at_once: the most rows of a part; None is no limit.

    Returns:
        The parts of the process, in order; parts of similar size.
    """
    most = -(-total // processes)
    count = -(-most // (at_once or most))
    first, last = (_cut(total, processes, process + i) for i in (0, 1))
    cuts = [first + _cut(last - first, count, part) for part in range(count + 1)]
    parts = [range(start, stop) for start, stop in zip(cuts, cuts[1:], strict=False)]
    return [Share(part or range(1), len(part)) for part in parts]


def _cut(total: int, parts: int, part: int) -> int:
    """Where a part starts if a range is cut as evenly as possible."""
    return total * part // parts
