"""The dataset card: the README.md of the output, with the run's figures, models and columns.

Its front matter follows the Hugging Face Hub's format, so an uploaded output is a usable dataset
there: https://huggingface.co/docs/hub/datasets-cards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from rudalle_lib.config.run import RunConfig
from rudalle_lib.escaping import markdown_code, markdown_text, yaml_text
from rudalle_lib.pipeline.stages import SECOND_SCORER, other_models, stage_models
from rudalle_lib.registry import is_stated
from rudalle_lib.report.front_matter import DataForm, SplitSize, render_front_matter
from rudalle_lib.report.templates import fill
from rudalle_lib.schema.lineage import Lineage
from rudalle_lib.schema.records import RunManifest, RunTotals, RunUsage, ScoreSummary
from rudalle_lib.selection.yields import render_yields


@dataclass(frozen=True)
class CardModel:
    """A model that the run used: stage, registry name, licence and digest of its weights."""

    stage: str
    name: str
    licence: str
    digest: str


FILES_ROWS = {
    "files": "| `data/images/` | the image files, one folder per shard, and `metadata.parquet`, a "
    "row for each of them |",
    "webdataset": "| `data/webdataset/` | tar files with the images, each with its prompt (`.txt`) "
    "and metadata (`.json`) |",
    "parquet": "| `data/parquet/` | tables of the images (column `image`) and their metadata |",
}
"""Row of the table of files for each `publish.format`."""

MERGED_ROWS = {
    "webdataset": "| `data/merged/` | tar files with the images of several shards, each with its "
    "prompt (`.txt`) and metadata (`.json`) |",
    "parquet": "| `data/merged/` | tables of the images of several shards (column `image`) and "
    "their metadata |",
}
"""The same, of merged files."""

KEPT_ROWS = """\
| `plan/*.parquet` | the prompts of each shard, fixed when they were planned |
| `stages/` | the output of each stage, kept so that another run repeats only what has changed |
| `shards/*.json`, `run.json` | manifests; a shard is finished if it has a manifest |
"""
"""Rows of the table of files for what is not shared."""

RUN_ROW = "| `run.json` | configuration, weights, versions and figures of the run |\n"
"""Row of the table of files of a shared dataset."""

BARS = 30
"""Characters of the longest bar of the histogram."""

GALLERY_ROW = "| `gallery/index.html` | a page with the published and the rejected images |\n"
"""Row of the table of files if there is a gallery."""


def render_dataset_card(
    manifest: RunManifest,
    models: Sequence[CardModel],
    languages: Sequence[str],
    columns: pa.Schema,
    contact_sheet: bool = False,
    gallery: bool = False,
    splits: Mapping[str, SplitSize] | None = None,
    translations: str = "",
    form: DataForm | None = None,
    shared: bool = False,
) -> str:
    """Render the card as Markdown.

    Args:
        manifest: the finished run.
        models: the models, in the order of their stages.
        languages: language codes of the prompts.
        columns: schema of the metadata; descriptions are taken from the fields' metadata.
        contact_sheet: whether the output has a `contact_sheet.png`.
        gallery: whether the output has a `gallery/index.html`.
        splits: sizes by name; by default one split with all published images.
        translations: a section about translations (`worst_translations.render_translations`).
        form: how the images are stored; by default as the configuration says.
        shared: whether the card is that of a copy, without plan, stages and manifests.
    """
    totals, form = manifest.totals, form or form_of(manifest)
    rows = FILES_ROWS if not form.merged else MERGED_ROWS
    files_row = rows[form.form]
    if form.merged and not shared:
        files_row = f"{FILES_ROWS[form.form]}\n{files_row}"
    sizes = splits or {"": SplitSize(totals.kept, totals.image_bytes)}
    paragraphs = []
    if contact_sheet:
        paragraphs.append("![Contact sheet](contact_sheet.png)")
    if gallery:
        paragraphs.append("Browse the images in [gallery/index.html](gallery/index.html).")
    return fill(
        "dataset_card.md",
        {
            "name": markdown_text(manifest.name),
            "name_yaml": yaml_text(manifest.name),
            "languages": "\n".join(f"- {yaml_text(code)}" for code in languages) or "- ru",
            "kept": f"{totals.kept:,}",
            "prompts": f"{totals.prompts:,}",
            "overview": "".join(f"\n{paragraph}\n" for paragraph in paragraphs),
            "figures": render_figures(manifest),
            "histogram": render_histogram(manifest.scores),
            "licences": "\n\n".join(licence_texts(models, markdown_text)),
            "rejects": render_rejects(totals.rejected),
            "lineage": render_lineage(manifest.lineage),
            "yields": _yields(manifest),
            "models": "\n".join(_model_row(model) for model in models),
            "front_matter": render_front_matter(form, columns, sizes),
            "files_row": files_row,
            "kept_rows": RUN_ROW if shared else KEPT_ROWS,
            "gallery_row": GALLERY_ROW if gallery else "",
            "columns": "\n".join(_column_row(column) for column in columns),
            "seed": markdown_text(str(manifest.config.get("seed", 0))),
            "versions": _versions(manifest.versions),
            "translations": translations,
        },
    )


def form_of(manifest: RunManifest) -> DataForm:
    """How the images of a run are stored."""
    settings = manifest.config.get("publish", {})
    form, image_format = settings.get("format", "files"), settings.get("image_format", "png")
    return DataForm(form, image_format, settings.get("rows_per_file") is not None)


def used_models(config: RunConfig, weights: Mapping[str, str]) -> list[CardModel]:
    """The models of a configuration.

    Args:
        config: of the run.
        weights: digests of the weights by stage.
    """
    second = {n: e for n, e in other_models(config).items() if n == SECOND_SCORER}
    entries = (stage_models(config) | second).items()
    return [CardModel(stage, e.name, e.licence, weights.get(stage, "")) for stage, e in entries]


def render_histogram(scores: ScoreSummary | None) -> str:
    """Render how many images have which score, as bars of text; empty without scores."""
    if scores is None:
        return ""
    step = (scores.highest - scores.lowest) / len(scores.bins)
    tallest, digits = max(scores.bins), len(f"{max(scores.bins):,}")
    lines = []
    for index, count in enumerate(scores.bins):
        bar = "█" * -(-BARS * count // tallest)
        lines.append(f"{scores.lowest + index * step:7.3f}  {count:>{digits},}  {bar}".rstrip())
    rows = "\n".join(lines)
    return f"Images by score; each row begins at the score on its left.\n\n```text\n{rows}\n```\n\n"


def licence_texts(models: Sequence[CardModel], escaped: Callable[[str], str] = str) -> list[str]:
    """What the licences of the weights mean for the images, a text per paragraph.

    Args:
        models: the models, in the order of their stages.
        escaped: makes names safe for where the text goes.
    """
    open_names = _names(model for model in models if not is_stated(model.licence))
    stated = sorted({model.licence for model in models if is_stated(model.licence)})
    parts = []
    if stated:
        parts.append(
            f"The weights are under {', '.join(map(escaped, stated))}. These licences cover "
            "the weights themselves, and set no terms for images that are drawn with them."
        )
    if open_names:
        parts.append(
            f"For {', '.join(map(escaped, open_names))} only the licence of the code is "
            "stated, not that of the weights. What their authors allow for images is therefore "
            "open: ask them before you use these images commercially."
        )
    parts.append(
        "No licence of weights grants rights to what an image may show, such as trademarks or the "
        "likeness of a person. Whoever publishes this dataset chooses the licence of the dataset."
    )
    return parts


def _names(models: Iterable[CardModel]) -> list[str]:
    return list(dict.fromkeys(model.name for model in models))


def render_figures(manifest: RunManifest) -> str:
    """Render the figures of a dataset as rows of a Markdown table."""
    totals, rows = manifest.totals, _dataset_rows(manifest)
    if totals.images:
        seconds = sum(totals.seconds.values())
        rows.append(("Working time of all stages, all runs", f"{seconds:,.0f} s"))
        rows.extend((f"... {stage}", _times(totals, stage)) for stage in totals.seconds)
    rows.extend(usage_rows(manifest.usage))
    return _table_rows(rows)


def render_run_figures(manifest: RunManifest) -> str:
    """Render what the dataset has now and what the last run did, as rows of a Markdown table."""
    return _table_rows(run_rows(manifest))


def run_rows(manifest: RunManifest) -> list[tuple[str, str]]:
    """Return what the dataset has now and what the last run did, as labels and figures."""
    usage = manifest.usage
    worked = [(f"... {stage}", f"{seconds:,.1f} s") for stage, seconds in usage.stages.items()]
    return [*_dataset_rows(manifest), *usage_rows(usage), *worked]


def _dataset_rows(manifest: RunManifest) -> list[tuple[str, str]]:
    totals, scores = manifest.totals, manifest.scores
    rows = [
        ("Prompts", f"{totals.prompts:,}"),
        ("Candidate images", f"{totals.images:,}"),
        ("Published images", f"{totals.kept:,}"),
        ("Shards finished / planned", f"{totals.shards:,} / {manifest.shards_planned:,}"),
        ("Size of the image files", f"{totals.image_bytes / 1e6:,.1f} MB"),
    ]
    rows[3:3] = [
        (f"... by {rule.rule}", f"{rule.kept:,} of {rule.before:,}")
        for rule in manifest.selection.rules
    ]
    if scores is not None:
        spread = f"{scores.lowest:.3f} / {scores.mean:.3f} / {scores.highest:.3f}"
        rows.append(("Score, lowest / mean / highest", spread))
    return rows


def _table_rows(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"| {markdown_text(name)} | {value} |" for name, value in rows)


def _yields(manifest: RunManifest) -> str:
    column = manifest.config.get("publish", {}).get("yield_by")
    table = render_yields(manifest.yields, str(column))
    return f"## Yield\n\n{table}\n" if table else ""


def usage_rows(usage: RunUsage) -> list[tuple[str, str]]:
    """Return the resources used by a run as pairs of a label and a figure."""
    rows = [("Duration of the last run", f"{usage.seconds:,.0f} s")]
    if usage.images_per_second is not None:
        rows.append(("... images drawn per second", f"{usage.images_per_second:,.2f}"))
    else:
        rows.append(("... images drawn", "none"))
    if usage.idle_share is not None:
        noun = "device" if usage.devices == 1 else "devices"
        rows.append((f"... idle share of {usage.devices} {noun}", f"{usage.idle_share:.0%}"))
    if usage.cost is not None:
        rows.append(("Device time", f"{usage.device_hours:,.3f} h"))
        rows.append(("Cost of device time", f"{usage.cost:,.2f}"))
    if usage.cost_per_published is not None:
        rows.append(("... per published image", f"{usage.cost_per_published:,.6f}"))
    return rows


def _times(totals: RunTotals, stage: str) -> str:
    waited = totals.waiting.get(stage, 0.0)
    waiting = f", {waited:,.1f} s waiting for a device" if waited >= 0.05 else ""
    return f"{totals.seconds[stage]:,.1f} s{waiting}"


def render_rejects(rejected: Mapping[str, int]) -> str:
    """Render the numbers of rejected prompts and images, by reason, as a Markdown table."""
    if not any(rejected.values()):
        return "Nothing was rejected.\n"
    found = sorted((reason, count) for reason, count in rejected.items() if count)
    rows = [f"| {markdown_code(reason)} | {count:,} |" for reason, count in found]
    return "\n".join(
        ["| reason for rejection | prompts and images |", "| :--- | ---: |", *rows, ""]
    )


def render_lineage(lineage: Lineage | None) -> str:
    """Render where the image tokens come from; empty for a dataset that was drawn."""
    if lineage is None:
        return ""
    source, name = markdown_code(lineage.source), markdown_text(lineage.name)
    lines = [
        "\n## Lineage\n",
        f"Rendered from the image tokens of {name} in {source}, finished at "
        f"{markdown_text(lineage.finished)}",
        f"(`run.json` with SHA-256 {markdown_code(lineage.run[:16])}); nothing was drawn again.\n",
    ]
    if lineage.changes:
        lines += ["| changed setting | there | here |", "| :--- | :--- | :--- |"]
    for key, values in lineage.changes.items():
        cells = (markdown_code(cell) for cell in (key, *map(_shown, values)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _model_row(model: CardModel) -> str:
    cells = (
        *(markdown_text(text) for text in (model.stage, model.name, model.licence)),
        markdown_code(model.digest[:16]),
    )
    return f"| {' | '.join(cells)} |"


def _column_row(column: pa.Field) -> str:
    note = (column.metadata or {}).get(b"description", b"").decode(errors="replace")
    note = note or "copied from the prompt table"
    name, kind = markdown_code(column.name), markdown_text(str(column.type))
    return f"| {name} | {kind} | {markdown_text(note)} |"


def _versions(versions: Mapping[str, str]) -> str:
    names = ", ".join(markdown_text(f"{name} {version}") for name, version in versions.items())
    return f"\nMade with {names}." if names else ""
