"""One progress bar per stage, by rich."""

from __future__ import annotations

import threading
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from flows.progress import RunProgress, messages
from tasks.runtime.events import Event, Planned, Selected


class Bars:
    """One progress bar per stage, with the number of images and the time left beside them.

    Args:
        progress: what they show.
        console: where `rich` is shown once it is started.
    """

    def __init__(self, progress: RunProgress, console: Console) -> None:
        self._progress = progress
        self.rich = Progress(
            TextColumn("{task.description}", justify="left", style="bold"),
            BarColumn(bar_width=27, complete_style="red", finished_style="white"),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[note]}", style="bright_black"),
            console=console,
        )
        self._rows = {
            stage: self.rich.add_task(stage, total=None, start=False, note="")
            for stage in progress.stages
        }

    def set_total(self, shards: int) -> None:
        """Set the number of shards that are to be processed."""
        for row in self._rows.values():
            self.rich.update(row, total=shards)

    def update(self) -> None:
        """Show the progress as it is now."""
        rate = self._progress.rate
        notes = {
            "translate": self._progress.time_left(),
            "generate": ", ".join(filter(None, [rate.speed(), self._progress.rounds()])),
            "publish": rate.counts(),
        }
        for stage, row in self._rows.items():
            completed = self._progress.shards.completed(stage)
            if completed:
                self.rich.start_task(row)
            self.rich.update(row, completed=completed, note=notes.get(stage, ""))


class BarView:
    """Bars that move in a terminal, with messages above them."""

    def __init__(self, console: Console, progress: RunProgress) -> None:
        self._console, self._progress = console, progress
        self._starting = console.status("Starting Prefect")
        self._bars = Bars(progress, console)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Show that Prefect is starting; the bars appear with the plan."""
        self._starting.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop updating; the bars stay on screen."""
        self._starting.stop()
        self._bars.rich.stop()

    def __call__(self, event: Event) -> None:
        """Update the bars; messages are printed above them."""
        with self._lock:
            self._progress.note(event)
            if isinstance(event, Planned):
                self._starting.stop()
            for message in messages(event):
                self._console.print(message)
            if isinstance(event, Planned):
                self._bars.set_total(event.todo)
                if event.todo:
                    self._bars.rich.start()
            elif isinstance(event, Selected):
                self._bars.set_total(len(event.prompts))
            self._bars.update()
