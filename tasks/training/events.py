"""What a fine-tuning tells whoever shows it; without a listener it is dropped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Encoded:
    """Images of the datasets are encoded: `reused` of the shards were so already."""

    images: int
    rejects: int
    shards: int
    reused: int


@dataclass(frozen=True)
class Stepped:
    """A step is made: its number from 1, all steps, and its figures."""

    step: int
    steps: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Exporting:
    """The training is finished, and its weights are written."""


Event = Encoded | Stepped | Exporting

listener: ContextVar[Callable[[Event], None] | None] = ContextVar("training_listener", default=None)
"""Called with every event, from several threads."""


def emit(event: Event) -> None:
    """Pass an event to the listener of this context, if there is one."""
    listen = listener.get()
    if listen is not None:
        listen(event)
