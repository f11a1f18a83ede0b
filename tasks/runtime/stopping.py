"""Stop a run: when the flow ends early, its tasks stop between two steps.

The request is in a context variable, like the listener of `tasks.runtime.events`. A `WorkerPool`
passes it on to its workers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rudalle_lib.errors import StoppedError

stop_requested: ContextVar[threading.Event | None] = ContextVar("stop_requested", default=None)
"""Set when the run of this context must stop; None outside of a run."""


@contextmanager
def stop_at_the_end(event: threading.Event) -> Iterator[None]:
    """Stop the tasks that are submitted in this block when it ends, normally or by an exception.

    Args:
        event: is set at the end; whoever sets it earlier stops them earlier.
    """
    token = stop_requested.set(event)
    try:
        yield
    finally:
        event.set()
        stop_requested.reset(token)


def stop_if_requested() -> None:
    """Raise if the run must stop. Called between steps, so that no file is left half-written.

    Raises:
        StoppedError: the run must stop.
    """
    event = stop_requested.get()
    if event is not None and event.is_set():
        raise StoppedError("The run was asked to stop; the next run processes this shard again.")
