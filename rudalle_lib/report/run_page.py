"""A finished run as one Markdown page with embedded images, for an orchestrator's UI."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset import layout
from rudalle_lib.dataset.manifests import finished_shards, read_shard_manifest
from rudalle_lib.escaping import markdown_text
from rudalle_lib.report.contact_sheet import draw_contact_sheet
from rudalle_lib.report.dataset_card import render_rejects, render_run_figures
from rudalle_lib.report.report import choose_for_sheet, read_tiles
from rudalle_lib.schema.arrow import from_table
from rudalle_lib.schema.records import ImageRecord, RunManifest, ScoreSummary
from rudalle_lib.selection.yields import render_yields
from rudalle_lib.storage.errors import public_url
from rudalle_lib.storage.storage import Storage

IMAGES, COLUMNS = 12, 4
"""Images on the page, and images per row."""

MAX_CANDIDATES = 1_000
"""Published images to choose from: no further shard is read once this number is reached."""

BAR_LENGTH = 40
"""Length of the longest bar of the histogram, in characters."""


ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""Variables that name another S3 server than Amazon's."""


def render_run_page(storage: Storage, config: RunConfig, run: RunManifest) -> str:
    """Render the page of a finished run.

    Raises:
        StorageError: when an image or its metadata cannot be read.
    """
    sheet = draw_run_sheet(storage, run)
    gallery = config.publish.gallery
    parts = [
        f"# {markdown_text(run.name)}",
        f"Output: {_link(storage, '')}",
        f"Gallery: {_link(storage, layout.GALLERY_PAGE)}" if gallery else "",
        f"![contact sheet]({data_uri(sheet)})" if sheet else "No image was published.",
        "| | |\n| :--- | ---: |\n" + render_run_figures(run),
        "" if run.scores is None else f"## Scores\n\n```\n{draw_histogram(run.scores)}\n```",
        f"## Rejected\n\n{render_rejects(run.totals.rejected)}",
        f"## Yield\n\n{render_yields(run.yields, str(config.publish.yield_by))}"
        if run.yields
        else "",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def draw_histogram(scores: ScoreSummary) -> str:
    """Render the histogram as text, one line per bin, from the lowest scores to the highest."""
    step = (scores.highest - scores.lowest) / max(len(scores.bins), 1)
    max_count = max(scores.bins, default=0)
    lines = []
    for index, count in enumerate(scores.bins):
        eighths = round(8 * BAR_LENGTH * count / max_count) if max_count else 0
        bar = "█" * (eighths // 8) + ["", *"▏▎▍▌▋▊▉"][eighths % 8]
        lines.append(f"{scores.lowest + index * step:6.3f} {bar} {count:,}".rstrip())
    return "\n".join(lines)


def draw_run_sheet(storage: Storage, run: RunManifest) -> Image.Image | None:
    """Draw the best images of some prompts on a small sheet.

    Returns:
        None if nothing is published.

    Raises:
        StorageError: when an image or its metadata cannot be read.
    """
    chosen = choose_for_sheet(_read_some_images(storage), IMAGES)
    if not chosen:
        return None
    facts = [f"{run.totals.kept:,} of {run.totals.images:,} images published"]
    return draw_contact_sheet(read_tiles(storage, chosen), run.name, facts, COLUMNS)


def _read_some_images(storage: Storage) -> Sequence[ImageRecord]:
    """Read the image records of the first finished shards."""
    records: list[ImageRecord] = []
    for index, term in finished_shards(storage).items():
        manifest = read_shard_manifest(storage, index, term)
        if manifest is not None:
            records += from_table(storage.read_table(manifest.metadata.path), ImageRecord)
        if len(records) >= MAX_CANDIDATES:
            break
    return records


def data_uri(sheet: Image.Image) -> str:
    """Encode a sheet as WebP in a data URI."""
    buffer = io.BytesIO()
    sheet.save(buffer, format="WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _link(storage: Storage, path: str) -> str:
    """The place of a file, or of the output, as a link if a browser can follow it."""
    address = browser_url(storage.url(path), folder=not path)
    place = markdown_text(storage.public_path(path))
    return place if address is None else f"[{place}](<{address}>)"


def browser_url(
    url: str, folder: bool = False, environment: Mapping[str, str] = os.environ
) -> str | None:
    """Return the address of a file or folder for the browser of somebody who may read it.

    Files of a bucket are on the page of Amazon's or Google's console, which asks for a login. Other
    S3 servers show files only if they let everybody read them. No address has a signature.

    Args:
        url: full URL or absolute local path.
        folder: whether it is a folder.
        environment: may name another S3 server.

    Returns:
        None if a browser cannot open it.
    """
    if "://" not in url:
        return Path(url).as_uri()
    scheme, _, path = url.partition("://")
    bucket, _, key = path.partition("/")
    key = quote(key.rstrip("/"))
    if scheme in ("http", "https"):
        return public_url(url)
    if scheme == "s3":
        endpoint = next(filter(None, map(environment.get, ENDPOINTS)), None)
        if endpoint:
            return None if folder else f"{public_url(endpoint).rstrip('/')}/{bucket}/{key}"
        kind, end = ("buckets", "/") if folder else ("object", "")
        return f"https://s3.console.aws.amazon.com/s3/{kind}/{bucket}?prefix={key}{end}"
    if scheme in ("gs", "gcs"):
        kind = "" if folder else "_details/"
        return f"https://console.cloud.google.com/storage/browser/{kind}{bucket}/{key}"
    return None
