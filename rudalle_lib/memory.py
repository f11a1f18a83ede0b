"""What happens when memory runs out: smaller batches, and if one thing alone is too large, words.

A batch size that fits the empty device may not fit beside what other shards keep there, so the
batch is worked on again in halves, and no later one is larger. Results don't depend on batches.
"""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from rudalle_lib.errors import OutOfMemoryError

LOGGER = logging.getLogger(__name__)

Result = TypeVar("Result")

#: What PyTorch's allocators and the libraries below it say; only CUDA's allocator raises a kind of
#: error of its own. oneDNN gives no reason, but on a network that has run before it has no other.
SIGNS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "status_alloc_failed",
    "could not create a primitive",
    "could not create a memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory of the device or of the machine ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in SIGNS)


def in_fitting_batches(
    batches: Iterable[Sequence[int]], work: Callable[[Sequence[int]], Result], what: str
) -> Iterator[tuple[Sequence[int], Result]]:
    """Work on batches of indices; on halves of those for which there is not enough memory.

    Args:
        batches: what to work on, in order.
        work: what to do with a batch; it may be called again for parts of it.
        what: one element in words, for the error, as in "decoding one picture of 256 x 256".

    Yields:
        Each batch, or part of one, with its result, in order.

    Raises:
        OutOfMemoryError: a batch of one is too large.
    """
    waiting: deque[Sequence[int]] = deque(batches)
    largest = max((len(batch) for batch in waiting), default=0)
    while waiting:
        batch = waiting.popleft()
        if len(batch) > largest:
            waiting.appendleft(batch[largest:])
            batch = batch[:largest]
        try:
            result = work(batch)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise OutOfMemoryError(too_large(what, error)) from None
        else:
            yield batch, result
            continue
        largest = (len(batch) + 1) // 2
        LOGGER.warning("Not enough memory for a batch of %d: going on with %d", len(batch), largest)
        waiting.appendleft(batch)
        release()


@contextmanager
def clear_out_of_memory(what: str) -> Iterator[None]:
    """Say in one sentence that there is not enough memory for `what`, where a block finds that."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        message = too_large(what, error)
    else:
        return
    release()
    raise OutOfMemoryError(message)


def too_large(what: str, error: BaseException) -> str:
    """The sentence for what doesn't fit even alone."""
    return (
        f"There is not enough memory for {what}. Free some, take a device with more "
        "(runtime.devices), or ask for less: smaller pictures, fewer runtime.shards_in_flight, "
        f"a smaller upscale.tile, or runtime.dtype bfloat16 or int8. ({_first_line(error)})"
    )


def release() -> None:
    """Give back what the failed attempt held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
