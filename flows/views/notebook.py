"""Bars in the output of a notebook's cell.

They are HTML that replaces itself, so they need no widgets, and stay in the saved notebook.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self

from rich.text import Text

from flows.console import SafeConsole
from flows.progress import RunProgress, messages
from flows.views.bars import Bars
from tasks.runtime.events import Event, Planned, Selected, Step

INTERVAL = 0.25
"""Minimum number of seconds between two updates about running stages."""

WIDTH = 88
"""Columns of the bars."""

CELL = (
    '<pre style="margin:0;white-space:pre;overflow-x:auto;line-height:1.45;'
    "font-family:ui-monospace,Menlo,'DejaVu Sans Mono',monospace\">{code}</pre>"
)
"""The bars as HTML, in the colours of the notebook."""

STARTING = "Starting Prefect"


class NotebookView:
    """Bars in a notebook, with messages above them.

    Args:
        show: shows HTML in place of what it has shown before.
        progress: of the run.
    """

    def __init__(self, show: Callable[[str], None], progress: RunProgress) -> None:
        self._show, self._progress = show, progress
        self._screen = SafeConsole(page=WIDTH)
        self._bars = Bars(progress, self._screen)
        self._messages = [Text(STARTING, style="bright_black")]
        self._has_bars = False
        self._next_update = 0.0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Show that the run is starting; the bars appear with the plan."""
        self._update()
        return self

    def __exit__(self, *error: object) -> None:
        """Show how far the run has come."""
        with self._lock:
            self._update()

    def __call__(self, event: Event) -> None:
        """Update the cell, unless that has just been done for another step."""
        with self._lock:
            self._progress.note(event)
            if isinstance(event, Planned):
                self._messages.clear()
                self._has_bars = event.todo > 0
                self._bars.set_total(event.todo)
            elif isinstance(event, Selected):
                self._bars.set_total(len(event.prompts))
            self._messages += messages(event)
            if not isinstance(event, Step) or self._progress.clock() >= self._next_update:
                self._update()

    def _update(self) -> None:
        self._next_update = self._progress.clock() + INTERVAL
        for message in self._messages:
            self._screen.print(message, soft_wrap=True)
        if self._has_bars:
            self._bars.update()
            self._screen.print(self._bars.rich.get_renderable())
        self._show(self._screen.export_html(inline_styles=True, code_format=CELL))
