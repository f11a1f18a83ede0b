"""The report of a run: `run.json`, dataset card, contact sheet, gallery and metrics.

It is built only from the finished shards in storage, so it can be rebuilt at any time. Pages show a
bounded number of images, however large the dataset is.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.sections import PublishConfig
from rudalle_lib.dataset import layout
from rudalle_lib.dataset.leftovers import sweep_run
from rudalle_lib.dataset.lineage import read_lineage
from rudalle_lib.dataset.manifests import (
    package_versions,
    read_shard_manifests,
    require_run_manifest,
    totals,
    write_run_manifest,
)
from rudalle_lib.dataset.reader import PublishedImages
from rudalle_lib.dataset.rejects import count_plan_rejects
from rudalle_lib.derived.merging import merge_shards
from rudalle_lib.derived.thumbnails import sweep_thumbnails
from rudalle_lib.errors import DamagedError
from rudalle_lib.pipeline.stages import (
    IMAGE_ENCODER,
    other_models,
    stage_models,
)
from rudalle_lib.prompts.plan import read_tables
from rudalle_lib.report.contact_sheet import Tile, draw_contact_sheet, encode_contact_sheet
from rudalle_lib.report.croissant import render_croissant
from rudalle_lib.report.dataset_card import form_of, render_dataset_card, used_models
from rudalle_lib.report.front_matter import SplitSize
from rudalle_lib.report.gallery_data import render_single_page, write_gallery
from rudalle_lib.report.image_table import write_image_tables
from rudalle_lib.report.prometheus import prometheus_text
from rudalle_lib.report.report_files import ReportFiles
from rudalle_lib.report.usage import measure_usage, usual_batch_rows
from rudalle_lib.report.worst_translations import Row, render_translations, with_more
from rudalle_lib.schema.arrow import from_table, schema, with_current_names
from rudalle_lib.schema.decisions import NOTHING_ELSE, SelectionRecord
from rudalle_lib.schema.records import (
    ImageRecord,
    RunManifest,
    RunTotals,
    ScoreSummary,
    ShardManifest,
)
from rudalle_lib.schema.tables import union_schema
from rudalle_lib.selection.yields import measure_yields
from rudalle_lib.storage.storage import Storage

MAX_RECORDS = 10_000
"""Images of which the contact sheet shows the best."""


@dataclass
class Published:
    """Contents of the metadata of all shards: scores and languages of all images, rows of some."""

    records: list[ImageRecord] = field(default_factory=list)
    """The first `MAX_RECORDS` rows."""

    languages: set[str] = field(default_factory=set)
    scores: ScoreSummary | None = None
    columns: pa.Schema = field(default_factory=lambda: schema(ImageRecord))
    """Columns of all shards, with types that hold the values of all."""

    splits: dict[str, SplitSize] = field(default_factory=dict)
    """Sizes by name; the name is empty if there are no splits."""

    worst_translations: list[Row] = field(default_factory=list)
    """The least certain ones, see `report.worst_translations`."""


def write_report(
    storage: Storage,
    config: RunConfig,
    weights: Mapping[str, str],
    shards_planned: int,
    started: str,
    check_lease: Callable[[], None] = lambda: None,
    term: int = 0,
    selection: SelectionRecord = NOTHING_ELSE,
) -> RunManifest:
    """Write the report of a run, `run.json` last, and delete files that nothing names any more.

    Args:
        storage: the output.
        config: configuration of the run.
        weights: digests of the weights by stage, see `stages.weight_digests`.
        shards_planned: number of shards of the plan.
        started: when the run started, ISO 8601.
        check_lease: raises if this run must not write any more; called before anything is written,
            before `run.json`, and before files are deleted.
        term: of the lease that is held.
        selection: what decided which images are kept, beside the settings of `score`.

    Returns:
        The manifest that was written to `run.json`.

    Raises:
        StorageError: when a shard cannot be read or the report cannot be written.
    """
    check_lease()
    manifests, files = read_shard_manifests(storage), ReportFiles(storage)
    entries = stage_models(config)
    models = entries | other_models(config)
    names = {IMAGE_ENCODER: str(config.generate.image_encoder)}
    names |= {stage: entry.name for stage, entry in models.items()}
    published = read_published(storage, manifests)
    finished = datetime.now(UTC).isoformat(timespec="milliseconds")
    run = RunManifest(
        name=config.name,
        config=config.public_dict(),
        config_digest=config.digest(),
        weights={names[stage]: digest for stage, digest in weights.items()},
        versions=package_versions(),
        shards_planned=shards_planned,
        totals=totals(manifests, count_plan_rejects(storage)),
        tables=read_tables(storage),
        started=started,
        finished=finished,
        usage=measure_usage(manifests, started, finished, config.runtime.price_per_device_hour),
        scores=published.scores,
        batch_rows=usual_batch_rows(manifests),
        lineage=read_lineage(storage),
        selection=selection,
        yields=_yields(storage, config, manifests),
    )
    used = [entry.name for entry in entries.values()]
    sheet = write_contact_sheet(storage, files, config, run, published.records, used)
    if config.publish.gallery:
        write_gallery(storage, files, run, manifests, used, _gallery_facts(run, published))
    else:
        sweep_thumbnails(storage)
    if config.publish.format == "files":
        write_image_tables(storage, files, manifests, published.columns)
    if config.publish.rows_per_file is not None:
        write_merged_files(storage, files, config.publish, manifests, published.columns)
    cards = used_models(config, weights)
    languages, gallery = sorted(published.languages), config.publish.gallery
    about = (run, cards, languages, published.columns)
    worst = render_translations(published.worst_translations)
    card = render_dataset_card(*about, sheet, gallery, published.splits, worst)
    files.write(layout.CARD, card.encode())
    croissant = render_croissant(*about, published.splits, form_of(run))
    files.write(layout.CROISSANT, croissant)
    if config.publish.metrics:
        files.write(layout.METRICS, prometheus_text(run.name, shards_planned, run).encode())
    run = replace(run, files=files.written, term=term)
    before = storage.version(layout.RUN_MANIFEST)
    check_lease()
    write_run_manifest(storage, run, before)
    check_lease()
    files.sweep()
    sweep_run(storage, manifests, term, files.written)
    return run


def write_merged_files(
    storage: Storage,
    files: ReportFiles,
    section: PublishConfig,
    manifests: Sequence[ShardManifest],
    columns: pa.Schema,
) -> None:
    """Write the images of all shards to files of `section.rows_per_file` rows each.

    Files that the last report wrote are kept, as their names stand for their content.

    Raises:
        StorageError: an image cannot be read, or is damaged, or a file cannot be written.
    """
    rows, suffix = section.rows_per_file or 1, layout.image_suffix(section.image_format)
    for merged in merge_shards(storage, manifests, columns, section.format, rows):
        if not files.keep(merged.path):
            with files.writing(merged.path) as stream:
                merged.write(stream, storage, suffix)


def _yields(
    storage: Storage, config: RunConfig, manifests: Sequence[ShardManifest]
) -> dict[str, dict[str, int]]:
    column = config.publish.yield_by
    return {} if column is None else measure_yields(storage, manifests, column)


def render_shared_gallery(storage: Storage, seconds: int) -> str:
    """Render the gallery of a finished run as a single HTML page with signed URLs.

    Args:
        storage: the output of the run.
        seconds: how long the URLs are valid.

    Raises:
        StorageError: when the output has no finished run, or its storage cannot sign URLs.
    """
    run = require_run_manifest(storage)
    manifests = read_shard_manifests(storage)
    facts = _gallery_facts(run, read_published(storage, manifests))
    return render_single_page(storage, run, manifests, list(run.weights), facts, seconds)


def read_published(storage: Storage, manifests: Sequence[ShardManifest]) -> Published:
    """Read the metadata of all shards, one shard at a time."""
    published = Published()
    scores: list[float] = []
    for manifest in manifests:
        table = _metadata(storage, manifest)
        if table.schema != published.columns:
            published.columns = union_schema([published.columns, table.schema])
        _add_sizes(published.splits, table, manifest)
        published.languages.update(table.column("lang").to_pylist())
        published.worst_translations = with_more(published.worst_translations, table)
        scores += table.column("score").to_pylist()
        remaining = MAX_RECORDS - len(published.records)
        published.records += from_table(table.slice(0, remaining), ImageRecord)
    if scores:
        published.scores = summarise_scores(scores)
    return published


def _add_sizes(sizes: dict[str, SplitSize], table: pa.Table, manifest: ShardManifest) -> None:
    for split in sorted(manifest.splits) or [""]:
        own = table.filter(pc.equal(table.column("split"), split)) if split else table
        before = sizes.get(split, SplitSize(0, 0))
        total = pc.sum(own.column("bytes")).as_py() or 0
        sizes[split] = SplitSize(before.images + own.num_rows, before.bytes + total)


def summarise_scores(scores: Sequence[float], bins: int = 20) -> ScoreSummary:
    """Summarise one or more scores as lowest, mean, highest and a histogram."""
    low, high = min(scores), max(scores)
    step = (high - low) / bins or 1.0
    by_bin = Counter(min(int((score - low) / step), bins - 1) for score in scores)
    counts = tuple(by_bin[index] for index in range(bins))
    return ScoreSummary(low, sum(scores) / len(scores), high, counts)


def _metadata(storage: Storage, manifest: ShardManifest) -> pa.Table:
    try:
        return with_current_names(storage.read_table(manifest.metadata.path), ImageRecord)
    except DamagedError as error:
        raise DamagedError(
            f"{error} To rebuild its shard, run `rudalle-flows verify "
            f"{shlex.quote(storage.public_path())} --repair` and then the run again."
        ) from None


def write_contact_sheet(
    storage: Storage,
    files: ReportFiles,
    config: RunConfig,
    run: RunManifest,
    records: Sequence[ImageRecord],
    names: Sequence[str],
) -> bool:
    """Write `contact_sheet.png` with the best images, if there are any.

    Returns:
        Whether there is a contact sheet.
    """
    chosen = choose_for_sheet(records, config.publish.contact_sheet)
    if not chosen:
        return False
    tiles = read_tiles(storage, chosen)
    totals_line = " · ".join(f"{figure} {label}" for figure, label in _facts(run.totals))
    facts = [totals_line, " · ".join(names), f"seed {config.seed}"]
    sheet = draw_contact_sheet(tiles, config.name, facts)
    files.write(layout.CONTACT_SHEET, encode_contact_sheet(sheet))
    return True


def read_tiles(storage: Storage, records: Sequence[ImageRecord]) -> list[Tile]:
    """Read published images, and make tiles of them with their prompts and scores."""
    from rudalle_lib.images.codecs import decode_image, to_pil  # imports torch

    images = PublishedImages(storage)
    tiles = []
    for record in records:
        file = images.read(record.path, record.image_id)
        pixels = decode_image(file, name=record.image_id, keep_alpha=True)
        tiles.append(Tile(to_pil(pixels), record.text, f"{record.score:.3f}"))
    return tiles


def choose_for_sheet(records: Sequence[ImageRecord], count: int) -> list[ImageRecord]:
    """Choose up to `count` images: the best of every prompt, then the second best, and so on.

    Returns:
        The chosen records, in the order of `records`.
    """
    best = sorted(range(len(records)), key=lambda index: records[index].rank)[:count]
    return [records[index] for index in sorted(best)]


def _gallery_facts(run: RunManifest, published: Published) -> list[tuple[str, str]]:
    mean = [] if published.scores is None else [(f"{published.scores.mean:.3f}", "mean score")]
    return _facts(run.totals) + mean


def _facts(sums: RunTotals) -> list[tuple[str, str]]:
    return [
        (f"{sums.prompts:,}", "prompts"),
        (f"{sums.images:,}", "candidates"),
        (f"{sums.kept:,}", "published"),
        (f"{sum(sums.rejected.values()):,}", "rejected"),
    ]
