"""The dataset card: the README.md of the output, with the run's figures, models and columns.

The front matter is the one that the Hugging Face hub reads, so an uploaded folder is a dataset.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from rudalle_lib.records import RunManifest, RunTotals
from rudalle_lib.run_figures import RunUsage
from rudalle_lib.templating import fill


@dataclass(frozen=True)
class CardModel:
    """A model that took part: stage, registry name, licence and digest of its weights."""

    stage: str
    name: str
    licence: str
    digest: str


class Form(NamedTuple):
    """How a dataset of a form is found and read: a pattern, a row of a table, Python."""

    data_files: str
    row: str
    reading: str


FORMS = {
    "files": Form(
        "data/metadata/*.parquet",
        "| `data/images/` | the image files, a folder a shard |",
        """import pandas as pd

images = pd.read_parquet("data/metadata")  # `path` is relative to this folder""",
    ),
    "webdataset": Form(
        "data/webdataset/*.tar",
        "| `data/webdataset/*.tar` | the images of a shard, each with its prompt (`.txt`) and "
        "metadata (`.json`) |",
        """import webdataset

images = webdataset.WebDataset("data/webdataset/00000.tar", shardshuffle=False).decode("pil")""",
    ),
    "parquet": Form(
        "data/parquet/*.parquet",
        "| `data/parquet/*.parquet` | the images of a shard, in a column `image` before their "
        "metadata |",
        """import datasets

images = datasets.load_dataset("parquet", data_files="data/parquet/*.parquet")["train"]""",
    ),
}
"""By `publish.format`."""


def render_dataset_card(
    manifest: RunManifest,
    models: Sequence[CardModel],
    languages: Sequence[str],
    columns: pa.Schema,
    contact_sheet: bool = False,
    gallery: bool = False,
) -> str:
    """The card as Markdown.

    Args:
        manifest: the finished run.
        models: in the order of the stages.
        languages: codes of the prompts' languages.
        columns: schema of the metadata; descriptions are taken from the fields' metadata.
        contact_sheet: whether `contact_sheet.png` lies beside the card.
        gallery: whether `gallery/index.html` does.
    """
    totals, form = manifest.totals, FORMS[manifest.config.get("publish", {}).get("format", "files")]
    sheet, page = "![Contact sheet](contact_sheet.png)", "A page to browse them: "
    page += "[gallery/index.html](gallery/index.html)."
    shown = [sheet] * contact_sheet + [page] * gallery
    row = "| `gallery/index.html` | a page to look at the images and at what was set aside |\n"
    return fill(
        "dataset_card.md",
        {
            "name": plain(manifest.name),
            "name_yaml": json.dumps(manifest.name),
            "languages": "\n".join(f"- {code}" for code in languages) or "- ru",
            "kept": f"{totals.kept:,}",
            "prompts": f"{totals.prompts:,}",
            "contact_sheet": "".join(f"\n{line}\n" for line in shown),
            "figures": describe_figures(manifest),
            "rejects": describe_rejects(totals.rejected),
            "models": "\n".join(_model_row(model) for model in models),
            "data_files": form.data_files,
            "pictures_row": form.row,
            "reading": form.reading,
            "gallery_row": row * gallery,
            "columns": "\n".join(_column_row(column) for column in columns),
            "seed": str(manifest.config.get("seed", 0)),
            "versions": _versions(manifest.versions),
        },
    )


def plain(text: str) -> str:
    """`text` on one line, with what Markdown or HTML would read as markup escaped."""
    line = " ".join(text.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|#>~])", r"\\\1", line)


def describe_figures(manifest: RunManifest) -> str:
    """The rows of a Markdown table with the run's figures."""
    totals, scores = manifest.totals, manifest.scores
    rows = [
        ("Prompts", f"{totals.prompts:,}"),
        ("Candidate images", f"{totals.images:,}"),
        ("Published images", f"{totals.kept:,}"),
        ("Shards finished / planned", f"{totals.shards:,} / {manifest.shards_planned:,}"),
        ("Size of the image files", f"{totals.image_bytes / 1e6:,.1f} MB"),
    ]
    if scores is not None:
        spread = f"{scores.lowest:.3f} / {scores.mean:.3f} / {scores.highest:.3f}"
        rows.append(("Score, lowest / mean / highest", spread))
    if totals.images:
        seconds = sum(totals.seconds.values())
        rows.append(("Work of all stages", f"{seconds:,.0f} s"))
        rows.extend((f"... {stage}", _times(totals, stage)) for stage in totals.seconds)
    rows.extend(describe_usage(manifest.usage))
    return "\n".join(f"| {name} | {value} |" for name, value in rows)


def describe_usage(usage: RunUsage) -> list[tuple[str, str]]:
    """What a run took, for people: what, and its figure."""
    rows = [("Last run, from start to report", f"{usage.seconds:,.0f} s")]
    if usage.images_per_second is not None:
        rows.append(("... images drawn a second", f"{usage.images_per_second:,.2f}"))
    if usage.idle_share is not None:
        noun = "device" if usage.devices == 1 else "devices"
        rows.append((f"... idle share of {usage.devices} {noun}", f"{usage.idle_share:.0%}"))
    if usage.cost is not None:
        rows.append(("Device time", f"{usage.device_hours:,.3f} h"))
        rows.append(("Cost of the device time", f"{usage.cost:,.2f}"))
    if usage.cost_per_published is not None:
        rows.append(("... per published image", f"{usage.cost_per_published:,.6f}"))
    return rows


def _times(totals: RunTotals, stage: str) -> str:
    waited = totals.waiting.get(stage, 0.0)
    waiting = f", {waited:,.1f} s waiting for a device" if waited >= 0.05 else ""
    return f"{totals.seconds[stage]:,.1f} s{waiting}"


def describe_rejects(rejected: Mapping[str, int]) -> str:
    """What was set aside, by reason, as a Markdown table."""
    if not any(rejected.values()):
        return "Nothing was rejected.\n"
    rows = [f"| `{reason}` | {count:,} |" for reason, count in sorted(rejected.items()) if count]
    return "\n".join(["| rejected as | rows |", "| :--- | ---: |", *rows, ""])


def _model_row(model: CardModel) -> str:
    return f"| {model.stage} | {model.name} | {plain(model.licence)} | `{model.digest[:16]}` |"


def _column_row(column: pa.Field) -> str:
    note = (column.metadata or {}).get(b"description", b"").decode()
    note = note or "passed through from the prompt table"
    return f"| `{column.name.replace('`', '')}` | {plain(str(column.type))} | {plain(note)} |"


def _versions(versions: Mapping[str, str]) -> str:
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"\nMade with {names}." if names else ""
