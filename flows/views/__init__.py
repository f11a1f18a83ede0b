"""What a run shows of its progress: bars in a terminal or a notebook, plain lines otherwise."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol, Self

from rich.console import Console

from flows.progress import RunProgress
from flows.views.bars import BarView
from flows.views.lines import LineView
from flows.views.notebook import NotebookView
from rudalle_lib.pipeline.stages import STAGES
from tasks.runtime.events import Event


class View(Protocol):
    """Shows events of a run. A context manager: it is visible inside its block. Thread-safe."""

    def __call__(self, event: Event) -> None:
        """Show an event."""

    def __enter__(self) -> Self:
        """Start showing."""

    def __exit__(self, *error: object) -> None:
        """Stop showing."""


def make_view(
    console: Console,
    off: Collection[str] = (),
    display: Callable[[str], None] | None = None,
) -> View:
    """Return the view for the place where a run was started: a notebook, a terminal or a pipe.

    Args:
        console: where events are shown outside of notebooks.
        off: stages that the run skips.
        display: shows HTML below the running cell of a notebook, see `notebook_display`.
    """
    progress = RunProgress([stage for stage in STAGES if stage not in off])
    if display is not None:
        return NotebookView(display, progress)
    return BarView(console, progress) if console.is_terminal else LineView(console, progress)
