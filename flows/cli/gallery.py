"""The commands `gallery` and `push`, which share a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.files import check_writable, write_file
from flows.cli.options import FinishedOutput
from flows.exits import translate_exit
from rudalle_lib.humanize import counted

MAX_HOURS = 24 * 7
"""Maximum lifetime of a signed S3 URL."""


def gallery(
    url: FinishedOutput,
    to: Annotated[Path, typer.Option(metavar="FILE", help="HTML file to write.")] = Path(
        "gallery.html"
    ),
    hours: Annotated[
        int,
        typer.Option(
            min=1, max=MAX_HOURS, metavar="N", help="Hours until the signed URLs of images expire."
        ),
    ] = 24,
) -> None:
    """Write the gallery as one HTML page to share.

    If the output is in an object store, the page shows its images by signed URLs, so anyone with
    the page can see them without access to the bucket.
    """
    with translate_exit():
        from rudalle_lib.report.report import render_shared_gallery
        from rudalle_lib.storage.storage import Storage

        check_writable(to)
        write_file(to, render_shared_gallery(Storage(url), 3600 * hours).encode())
        typer.echo(f"Wrote {to}. Anyone with this page can see the images for {hours} h.")


MAX_SHOWN = 10
"""Files that are listed by name."""


def push(
    url: FinishedOutput,
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="hf://datasets/OWNER/NAME, or a folder or URL such as s3://bucket/name.",
        ),
    ],
    public: Annotated[
        bool,
        typer.Option("--public", help="Let everybody see the dataset; by default it is private."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent and deleted; change nothing.")
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(metavar="BRANCH", help="Branch of the dataset; created if it is missing."),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            "--rows-per-file",
            min=1,
            metavar="N",
            help="Images per data file; by default publish.rows_per_file, or 5,000.",
        ),
    ] = None,
) -> None:
    """Push a dataset to the Hugging Face hub, or copy it to another folder or bucket.

    The images of all shards are merged into few large files; stages, plan and lease stay behind.
    Only what the target lacks is sent, and nobody sees half of it: repeat the command after an
    interruption. The token of the hub comes from HF_TOKEN or `hf auth login`.
    """
    with translate_exit():
        from rudalle_lib.errors import ConfigError
        from rudalle_lib.sharing.contents import SharedFile, read_contents
        from rudalle_lib.sharing.folder import FolderTarget
        from rudalle_lib.sharing.hub import HubTarget, is_hub_url
        from rudalle_lib.sharing.push import push as push_contents
        from rudalle_lib.storage.storage import Storage

        hub = is_hub_url(target)
        if not hub and (public or revision is not None):
            raise ConfigError("--public and --revision are for targets hf://datasets/OWNER/NAME.")
        destination = HubTarget(target, revision, public) if hub else FolderTarget(target)
        contents = read_contents(Storage(url), rows)

        def report(file: SharedFile, size: int) -> None:
            verb = "would send" if dry_run else "sent"
            images = f", {counted(file.images, 'image')}" if file.images else ""
            typer.echo(f"{verb} {file.path} ({_size(size)}{images})")

        pushed = push_contents(contents, destination, dry_run, report)
        for path in pushed.deleted[:MAX_SHOWN]:
            typer.echo(f"{'would delete' if dry_run else 'deleted'} {path}")
        if len(pushed.deleted) > MAX_SHOWN:
            typer.echo(f"... and {len(pushed.deleted) - MAX_SHOWN:,} more")
        new = f"{counted(len(pushed.new), 'new file')} ({_size(pushed.size)})"
        summary = f"{counted(pushed.images, 'image')}: {new}, {len(pushed.unchanged):,} unchanged"
        typer.echo(f"{summary}. {'Nothing was changed.' if dry_run else pushed.url}")


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"
