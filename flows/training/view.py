"""A line about a fine-tuning, for a terminal; for pipes and log files a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from rich.text import Text

from flows.console import SafeConsole
from rudalle_lib.humanize import counted, duration
from tasks.training.events import Encoded, Event, Exporting, Stepped

HEARTBEAT = 30.0
"""Minimum number of seconds between two lines, except at measurements."""


class TrainingView:
    """Shows the events of a fine-tuning."""

    def __init__(
        self, console: SafeConsole, name: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Show them on a console.

        Args:
            console: where to show them.
            name: of the new weights.
            clock: returns seconds.
        """
        self._console, self._name, self._clock = console, name, clock
        self._last = clock()
        self._begun: tuple[int, float] | None = None
        self._held_out: float | None = None
        self._status: Any = console.status("") if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        text = self._text(event)
        measured = isinstance(event, Stepped) and "held_out_loss" in event.figures
        if self._status is not None:
            self._status.update(Text(text))
        elif measured or isinstance(event, Exporting) or self._clock() - self._last >= HEARTBEAT:
            self.say(text)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._last = self._clock()
        self._console.print(Text(f"{self._name}: {text}"), soft_wrap=True)

    def _text(self, event: Event) -> str:
        if isinstance(event, Encoded):
            rejects = f", {event.rejects:,} rejected" if event.rejects else ""
            return f"encoding, {counted(event.images, 'image')}{rejects}"
        if isinstance(event, Exporting):
            return "writing the weights"
        return f"step {event.step:,} of {event.steps:,}, {self._figures(event.figures)}" + (
            self._left(event)
        )

    def _figures(self, figures: Mapping[str, float]) -> str:
        self._held_out = figures.get("held_out_loss", self._held_out)
        held_out = "" if self._held_out is None else f", held-out loss {self._held_out:.4f}"
        return f"loss {figures['loss']:.4f}{held_out}"

    def _left(self, event: Stepped) -> str:
        """How much longer the training takes, by the steps that were made since it was started."""
        now = self._clock()
        if self._begun is None:
            self._begun = event.step, now
        step, begun = self._begun
        if event.step == step or event.step == event.steps:
            return ""
        seconds = (now - begun) / (event.step - step) * (event.steps - event.step)
        return f", {duration(seconds)} left"
