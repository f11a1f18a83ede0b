"""The console of commands: colours, tables and progress, with the text of strangers made safe."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable
from typing import IO, Any, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.status import Status

from flows.terminal import SafeStream
from rudalle_lib.escaping import safe_text

PLAIN_TERMINALS = ("dumb", "unknown")
"""Values of `TERM` for terminals that cannot move the cursor."""


class SafeConsole(Console):
    """A console whose text cannot control the terminal; only its own colours and movements do.

    On a plain terminal it prints lines like into a file. Where the encoding is not a form of
    Unicode, its spinner and bars are ASCII.
    """

    def __init__(self, stderr: bool = False, page: int | None = None) -> None:
        """Print on standard output, or on standard error if `stderr`.

        Args:
            stderr: whether to print on standard error.
            page: print nowhere, and record pages of so many columns for `export_html`.
        """
        if page is not None:
            super().__init__(
                file=io.StringIO(), record=True, width=page, force_jupyter=False,
                highlight=False, markup=False, emoji=False,
            )  # fmt: skip
            return
        stream = sys.stderr if stderr else sys.stdout
        file = stream.unfiltered if isinstance(stream, SafeStream) else stream
        plain = os.environ.get("TERM", "") in PLAIN_TERMINALS
        super().__init__(
            file=cast("IO[str] | None", file),
            stderr=stderr,
            highlight=False,
            markup=False,
            emoji=False,
            force_terminal=False if plain else None,
        )

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render an object as segments whose text is safe."""
        for segment in super().render(renderable, options):
            safe = segment.text if segment.control else safe_text(segment.text)
            yield segment if safe == segment.text else Segment(safe, segment.style)

    def status(self, status: RenderableType, **options: Any) -> Status:
        """Return a spinner with a text."""
        if not self.encoding.startswith("utf"):
            options.setdefault("spinner", "line")
        return super().status(status, **options)


def notebook_display() -> Callable[[str], None] | None:
    """Return what shows HTML below the running cell, in place of what it has shown before.

    Returns:
        None if this process is no notebook's.
    """
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if getattr(shell, "kernel", None) is None:
        return None
    from IPython.display import HTML, DisplayHandle

    handle = DisplayHandle()
    handle.display(HTML(""))
    return lambda html: handle.update(HTML(html))
