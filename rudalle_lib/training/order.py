"""Which examples a step learns from, and which of them a process takes: all from a seed.

Examples are seen epoch after epoch, each epoch in an order of its own. The order is a function of
the seed and the number of the epoch alone, so a resumed training goes on where it was, and any
number of processes sees together what one would.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
"""Numbers of examples, int64 [n]."""

MASK = 2**64 - 1
"""Keys of the generator have 64 bits."""


@dataclass(frozen=True)
class Order:
    """An endless sequence of examples: one epoch after the other.

    The examples of all sources are numbered one after the other, from 0.

    Args:
        counts: examples of each source; at least one in all of them together.
        repeats: how often an epoch has each example of a source, at least 1; once by default.
        seed: any integer.

    Raises:
        ValueError: there is no example, or `repeats` does not fit `counts`.
    """

    counts: tuple[int, ...]
    repeats: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Check that the numbers fit together."""
        if self.repeats and len(self.repeats) != len(self.counts):
            raise ValueError(
                f"repeats: expected one number for each of {len(self.counts)} sources, "
                f"found {len(self.repeats)}"
            )
        if sum(self.counts) < 1 or min(self.counts) < 0 or min(self.repeats, default=1) < 1:
            raise ValueError(
                f"expected at least one example and repeats of at least 1, found {self}"
            )

    @property
    def epoch_length(self) -> int:
        """Positions of an epoch."""
        return sum(n * r for n, r in zip(self.counts, self._repeats, strict=True))

    def rows(self, first: int, last: int) -> Rows:
        """Return the examples at the positions from `first` up to, without, `last`."""
        length, parts = self.epoch_length, []
        while first < last:
            epoch, start = divmod(first, length)
            stop = min(length, start + last - first)
            parts.append(_epoch(self, epoch)[start:stop])
            first += stop - start
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def rows_of_step(self, step: int, batch_size: int, part: range) -> Rows:
        """Return the examples of a part of a step's batch.

        Args:
            step: number of the step, from 0.
            batch_size: examples per step, over all processes together.
            part: consecutive places in the batch, from 0 up to `batch_size`.
        """
        start = step * batch_size
        return self.rows(start + part.start, start + part.stop)

    @property
    def _repeats(self) -> tuple[int, ...]:
        return self.repeats or (1,) * len(self.counts)

    def _examples(self) -> Rows:
        """The examples of an epoch, not yet in its order."""
        ends = np.cumsum(self.counts)
        return np.concatenate(
            [
                np.tile(np.arange(end - count, end, dtype=np.int64), repeats)
                for end, count, repeats in zip(ends, self.counts, self._repeats, strict=True)
            ]
        )


@lru_cache(maxsize=4)
def _epoch(order: Order, epoch: int) -> Rows:
    """The examples of an epoch in its order.

    Sorted by raw numbers of Philox: unlike what numpy's `Generator` makes of them, they are the
    same in all versions of numpy.
    """
    key = [order.seed & MASK, epoch]
    drawn = np.random.Philox(key=np.array(key, np.uint64)).random_raw(order.epoch_length)
    shuffled = order._examples()[np.argsort(drawn, kind="stable")]
    shuffled.setflags(write=False)
    return shuffled


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
