"""Recover when memory runs out: smaller batches, and if one item does not fit, a clear error.

A batch that fits an idle device may not fit while other shards use the same device. Such a batch is
processed again in halves, and all later batches are at most that large. Results do not depend on
the batch size.
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
from rudalle_lib.models.gpu.engine import release
from rudalle_lib.models.gpu.graph import return_unused_memory

LOGGER = logging.getLogger(__name__)

Result = TypeVar("Result")

IMAGE_SHARE = 0.1
"""Share of a GPU's memory that must be free before an image network starts."""

OUT_OF_MEMORY_MESSAGES = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "status_alloc_failed",  # cuBLAS, cuDNN, cuSOLVER
    "allocation_failed",  # cuDNN 9: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED
    "status_not_initialized",  # cuBLAS and cuDNN, which need memory for their first call
    "unable to find a valid cudnn algorithm",  # every algorithm needs more working memory
    "unable to find an engine",  # the same in newer versions of cuDNN
    "cudaerrormemoryallocation",
    "could not create a primitive",
    "could not create a memory",
)
"""Parts of the messages of PyTorch's allocators and the libraries that it calls.

Only the CUDA allocator raises an exception type of its own. "could not create ..." is from oneDNN,
which gives no reason; for a network that has run before, memory is the only one.
"""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device or the machine ran out of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(m in message for m in OUT_OF_MEMORY_MESSAGES)


def in_fitting_batches(
    batches: Iterable[Sequence[int]], work: Callable[[Sequence[int]], Result], what: str
) -> Iterator[tuple[Sequence[int], Result]]:
    """Process batches of indices, and halve the batches that do not fit into memory.

    Args:
        batches: indices to process, in order.
        work: processes one batch; after a failure it is called again with parts of the batch.
        what: describes the work on one item in errors, for example "decoding one image of
            256 x 256".

    Yields:
        Each batch or part of a batch with its result, in order.

    Raises:
        OutOfMemoryError: a batch of one item does not fit.
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
                raise OutOfMemoryError(_not_enough_memory(what, error)) from None
        else:
            yield batch, result
            continue
        largest = (len(batch) + 1) // 2
        LOGGER.warning(
            "Not enough memory for a batch of %d; continuing with %d", len(batch), largest
        )
        waiting.appendleft(batch)
        free_unused_memory()


@contextmanager
def translate_out_of_memory(what: str) -> Iterator[None]:
    """Turn out-of-memory exceptions in a block into an `OutOfMemoryError` that says what to do.

    Args:
        what: describes the work in the error, for example "loading the model".

    Raises:
        OutOfMemoryError: the block ran out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        message = _not_enough_memory(what, error)
    else:
        return
    free_unused_memory()
    raise OutOfMemoryError(message)


def free_unused_memory() -> None:
    """Free memory that nothing uses, on this machine and all CUDA devices.

    That includes the captured steps of decoders that wait for their next batch.
    """
    release()
    gc.collect()
    if torch.cuda.is_available():
        return_unused_memory()


def free_gpu_bytes(device: torch.device) -> int:
    """Memory of a GPU for new tensors: what the driver has left, and what PyTorch has cached."""
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + cached


def make_room_for_images(device: torch.device) -> None:
    """Free the captured steps of decoders that wait on a GPU if they leave little of its memory.

    Batches of image networks are small, so that a tenth of the memory is enough for them.
    """
    if device.type != "cuda":
        return
    _, total = torch.cuda.mem_get_info(device)
    if free_gpu_bytes(device) < IMAGE_SHARE * total:
        LOGGER.info("Freeing the captured steps on %s for an image network", device)
        release(device)
        gc.collect()
        return_unused_memory()


def _not_enough_memory(what: str, error: BaseException) -> str:
    return (
        f"There is not enough memory for {what}. Free some, use a device with more memory "
        "(runtime.devices), or reduce the work: smaller images, fewer runtime.shards_in_flight, "
        f"a smaller upscale.tile, or runtime.dtype bfloat16 or int8. ({_first_line(error)})"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
