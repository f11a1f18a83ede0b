"""The command `gallery`: a finished run as one page to pass on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.exits import clear_exit

HOURS = 24 * 7
"""The longest that S3 lets a signed URL live."""


def gallery(
    url: Annotated[str, typer.Argument(help="The output of a run.")],
    to: Annotated[Path, typer.Option(help="File that the page is written to.")] = Path(
        "gallery.html"
    ),
    hours: Annotated[
        int, typer.Option(min=1, max=HOURS, help="How long its links to an object store work.")
    ] = 24,
) -> None:
    """Write the gallery as one page that finds its pictures from anywhere, by signed URLs."""
    with clear_exit():
        from rudalle_lib.errors import StorageError
        from rudalle_lib.report import render_shared_gallery
        from rudalle_lib.storage import Storage

        page = render_shared_gallery(Storage(url), 3600 * hours)
        try:
            to.write_text(page, encoding="utf-8")
        except OSError as error:
            raise StorageError(f"Cannot write {to}: {error.strerror or error}.") from None
        typer.echo(f"The page is {to}; whoever has it can see the pictures for {hours} h.")
