"""A run on one page of Markdown, pictures inside: what an orchestrator's page shows of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image

from rudalle_lib.config import RunConfig
from rudalle_lib.contact_sheet import draw_contact_sheet
from rudalle_lib.dataset_card import describe_figures, describe_rejects, plain
from rudalle_lib.manifest import finished_shards, read_shard_manifest
from rudalle_lib.record_tables import from_table
from rudalle_lib.records import ImageRecord, RunManifest
from rudalle_lib.report import choose_for_sheet, read_tiles
from rudalle_lib.run_figures import ScoreSummary
from rudalle_lib.storage import Storage

PICTURES, COLUMNS = 12, 4
"""Pictures on the page, and in a row of it."""

LOOKED_AT = 1_000
"""Published images among which the page's are chosen, at most one shard more."""

BAR = 40
"""Characters of the longest bar of the histogram."""


def render_run_page(storage: Storage, config: RunConfig, run: RunManifest) -> str:
    """The page of a run that has ended.

    Raises:
        StorageError: a picture or its metadata cannot be read.
    """
    sheet = _sheet(storage, config, run)
    parts = [
        f"# {plain(run.name)}",
        f"In {plain(storage.public_path())}",
        f"![contact sheet]({_data_uri(sheet)})" if sheet else "Nothing is published.",
        "| | |\n| :--- | ---: |\n" + describe_figures(run),
        "" if run.scores is None else f"## Scores\n\n```\n{draw_histogram(run.scores)}\n```",
        f"## Set aside\n\n{describe_rejects(run.totals.rejected)}",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def draw_histogram(scores: ScoreSummary) -> str:
    """A bar of text for every bin, from the lowest scores to the highest."""
    step = (scores.highest - scores.lowest) / max(len(scores.bins), 1)
    most = max(scores.bins, default=0)
    lines = []
    for place, count in enumerate(scores.bins):
        eighths = round(8 * BAR * count / most) if most else 0
        bar = "█" * (eighths // 8) + ["", *"▏▎▍▌▋▊▉"][eighths % 8]
        lines.append(f"{scores.lowest + place * step:6.3f} {bar} {count:,}".rstrip())
    return "\n".join(lines)


def _sheet(storage: Storage, config: RunConfig, run: RunManifest) -> Image.Image | None:
    """The best picture of some prompts; None where there is none."""
    chosen = choose_for_sheet(_some_published(storage), PICTURES)
    if not chosen:
        return None
    facts = [f"{run.totals.kept:,} of {run.totals.images:,} images published"]
    return draw_contact_sheet(read_tiles(storage, chosen), config.name, facts, COLUMNS)


def _some_published(storage: Storage) -> Sequence[ImageRecord]:
    """The records of the first shards."""
    records: list[ImageRecord] = []
    for index in finished_shards(storage):
        manifest = read_shard_manifest(storage, index)
        if manifest is not None:
            records += from_table(storage.read_table(manifest.metadata.path), ImageRecord)
        if len(records) >= LOOKED_AT:
            break
    return records


def _data_uri(sheet: Image.Image) -> str:
    buffer = io.BytesIO()
    sheet.save(buffer, format="WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
