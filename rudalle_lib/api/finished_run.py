"""A finished run for scripts and notebooks: its figures, and its images and rejects as tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rudalle_lib.escaping import html_text
from rudalle_lib.report.templates import fill
from rudalle_lib.storage.storage import Storage

if TYPE_CHECKING:
    import pandas as pd

    from rudalle_lib.schema.records import RunManifest


@dataclass(frozen=True)
class FinishedRun:
    """A finished run. Notebooks show it as its best images and its figures.

    Attributes:
        output: folder or URL that it wrote to.
        manifest: what `run.json` says of it.
    """

    output: str
    manifest: RunManifest

    def images(self) -> pd.DataFrame:
        """The metadata of all published images, see `read_images`."""
        from rudalle_lib.dataset.frames import read_images

        return read_images(self.output)

    def rejects(self) -> pd.DataFrame:
        """All prompts and images that were not published, see `read_rejects`."""
        from rudalle_lib.dataset.frames import read_rejects

        return read_rejects(self.output)

    def _repr_html_(self) -> str:
        return render_run_card(Storage(self.output), self.manifest)


def read_run(url: str) -> FinishedRun:
    """Read the last run that finished in an output.

    Args:
        url: output of a run, a folder or an fsspec URL.

    Raises:
        StorageError: no run has finished there, or it cannot be read.
        ShardError: `run.json` is damaged.
    """
    from rudalle_lib.dataset.manifests import require_run_manifest

    return FinishedRun(url, require_run_manifest(Storage(url)))


def render_run_card(storage: Storage, run: RunManifest) -> str:
    """Render a run as a piece of HTML with embedded images, in the colours of its page.

    Raises:
        StorageError: when an image or its metadata cannot be read.
    """
    from rudalle_lib.report.dataset_card import run_rows
    from rudalle_lib.report.run_page import data_uri, draw_run_sheet

    sheet = draw_run_sheet(storage, run)
    image = f'<img src="{data_uri(sheet)}" alt="contact sheet">' if sheet else ""
    rows = run_rows(run)
    rows += [(f"rejected as {reason}", f"{n:,}") for reason, n in run.totals.rejected.items() if n]
    parts = {
        "name": html_text(run.name),
        "output": html_text(storage.public_path()),
        "sheet": image or "<p>No image was published.</p>",
        "rows": "".join(
            f"<tr><td>{html_text(name)}</td><td>{html_text(value)}</td></tr>"
            for name, value in rows
        ),
    }
    return fill("run_card.html", parts)
