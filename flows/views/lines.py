"""Plain lines, for pipes and log files."""

from __future__ import annotations

import threading
from typing import Self

from rich.console import Console
from rich.text import Text

from flows.progress import RunProgress, finished_line, messages
from tasks.runtime.events import Event, ShardFinished, Step

HEARTBEAT = 30.0
"""Minimum number of seconds between two lines about a running stage."""


class LineView:
    """One line per shard, and occasionally one about a running stage."""

    def __init__(self, console: Console, progress: RunProgress) -> None:
        self._console, self._progress = console, progress
        self._last_line = progress.clock()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Do nothing."""
        return self

    def __exit__(self, *error: object) -> None:
        """Do nothing."""

    def __call__(self, event: Event) -> None:
        """Print the lines for an event, if any."""
        with self._lock:
            self._progress.note(event)
            for line in self._lines(event):
                self._last_line = self._progress.clock()
                self._console.print(Text(line), soft_wrap=True)

    def _lines(self, event: Event) -> list[str]:
        if isinstance(event, ShardFinished):
            summary = self._with_left(self._progress.rate.shard_summary())
            seconds = self._progress.rate.seconds(event.manifest)
            return [f"{finished_line(event.manifest, seconds)}; {summary}"]
        if not isinstance(event, Step):
            return [message.plain for message in messages(event)]
        if self._progress.clock() - self._last_line < HEARTBEAT:
            return []
        share = event.done / max(event.total, 1)
        return [self._with_left(f"shard {event.shard:05d}: {event.stage} {share:.0%}")]

    def _with_left(self, line: str) -> str:
        return ", ".join(filter(None, [line, self._progress.time_left()]))
