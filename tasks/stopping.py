"""How a run stops: whoever leaves it early asks its tasks to drop what they are at.

The wish travels in a context variable, as the listener of `progress` does. Tasks on Ray need none:
they end with the run that they belong to.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rudalle_lib.errors import StoppedError

asked: ContextVar[threading.Event | None] = ContextVar("asked", default=None)
"""Set when the run of this context must stop; None outside of a run."""


@contextmanager
def stop_at_the_end() -> Iterator[None]:
    """Tasks that are submitted inside stop when the block is left, whatever it is left by."""
    event = threading.Event()
    token = asked.set(event)
    try:
        yield
    finally:
        event.set()
        asked.reset(token)


def stop_if_asked() -> None:
    """Return if the work may go on; called between steps, so nothing is left half-written.

    Raises:
        StoppedError: it may not.
    """
    event = asked.get()
    if event is not None and event.is_set():
        raise StoppedError("The run was asked to stop; the next run does this shard again.")
