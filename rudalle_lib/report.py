"""What people look at when a run is over: `run.json`, dataset card, contact sheet, gallery.

All of it is made from the finished shards in storage, so it can be made again at any time. Pages
show a bounded number of images, however large the dataset is.
"""

from __future__ import annotations

import io
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa
from PIL import Image

from rudalle_lib import layout
from rudalle_lib.config import RunConfig
from rudalle_lib.contact_sheet import Tile, draw_contact_sheet, encode_contact_sheet
from rudalle_lib.dataset_card import CardModel, render_dataset_card
from rudalle_lib.errors import DamagedError, ShardError, StorageError
from rudalle_lib.gallery_files import (
    SHOWN_IMAGES,
    plan_reject_files,
    render_single_page,
    write_gallery,
)
from rudalle_lib.manifest import (
    package_versions,
    read_run_manifest,
    read_shard_manifests,
    totals,
    write_run_manifest,
)
from rudalle_lib.metrics import prometheus_text
from rudalle_lib.planning import read_tables
from rudalle_lib.published import PublishedPictures
from rudalle_lib.record_tables import from_table, schema
from rudalle_lib.records import ImageRecord, RunManifest, RunTotals, ShardManifest
from rudalle_lib.run_figures import ScoreSummary
from rudalle_lib.stages import IMAGE_ENCODER, models
from rudalle_lib.storage import Storage
from rudalle_lib.usage import measure_usage


@dataclass
class Published:
    """What the metadata of all shards says: scores and languages of all images, rows of some."""

    records: list[ImageRecord] = field(default_factory=list)
    languages: set[str] = field(default_factory=set)
    scores: ScoreSummary | None = None
    columns: pa.Schema = field(default_factory=lambda: schema(ImageRecord))


def write_report(
    storage: Storage,
    config: RunConfig,
    weights: Mapping[str, str],
    shards_planned: int,
    started: str,
) -> RunManifest:
    """Write the report of a run, `run.json` last.

    Args:
        storage: the output.
        config: what was asked for.
        weights: digest of the weights by stage.
        shards_planned: how many shards the plan has.
        started: when the run began, ISO 8601.
    """
    manifests = read_shard_manifests(storage)
    entries = models(config)
    names = {stage: entry.name for stage, entry in entries.items()}
    names[IMAGE_ENCODER] = str(config.generate.image_encoder)
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
    )
    used = [entry.name for entry in entries.values()]
    sheet = write_contact_sheet(storage, config, run, published.records, used)
    if config.publish.gallery:
        write_gallery(storage, run, manifests, used, _gallery_facts(run, published))
    cards = [
        CardModel(stage, entry.name, entry.licence, weights.get(stage, ""))
        for stage, entry in entries.items()
    ]
    languages = sorted(published.languages)
    shown = (published.columns, sheet, config.publish.gallery)
    card = render_dataset_card(run, cards, languages, *shown)
    storage.write_bytes(layout.CARD, card.encode())
    if config.publish.metrics:
        storage.write_bytes(layout.METRICS, prometheus_text(run.name, shards_planned, run).encode())
    write_run_manifest(storage, run)
    return run


def render_shared_gallery(storage: Storage, seconds: int) -> str:
    """The gallery of a finished run as one HTML page whose links are good for some seconds.

    Raises:
        StorageError: no run has ended in this output, or its storage cannot sign URLs.
    """
    run = read_run_manifest(storage)
    if run is None:
        raise StorageError(
            f"There is no finished run in {storage.public_path()}: expected {layout.RUN_MANIFEST}. "
            "Give the output of `rudalle-flows run`."
        )
    manifests = read_shard_manifests(storage)
    facts = _gallery_facts(run, read_published(storage, manifests))
    return render_single_page(storage, run, manifests, list(run.weights), facts, seconds)


def current_report(storage: Storage, config: RunConfig, shards_planned: int) -> RunManifest | None:
    """The run manifest in the output, if it tells of this run and of all that lies there."""
    try:
        run = read_run_manifest(storage)
    except ShardError:  # damaged: it is made again
        return None
    if run is None or (run.config_digest, run.shards_planned) != (config.digest(), shards_planned):
        return None
    sums = totals(read_shard_manifests(storage), count_plan_rejects(storage))
    return run if run.totals == sums and run.tables == read_tables(storage) else None


def count_plan_rejects(storage: Storage) -> Counter[str]:
    """Rows of prompt tables that did not make it into the plan, by reason."""
    counts: Counter[str] = Counter()
    for path in plan_reject_files(storage):
        counts.update(storage.read_table(path, ["reason"]).column("reason").to_pylist())
    return counts


def read_published(storage: Storage, manifests: Sequence[ShardManifest]) -> Published:
    """Read the metadata of all shards, a shard at a time."""
    published = Published()
    scores: list[float] = []
    for manifest in manifests:
        table = _metadata(storage, manifest)
        published.columns = table.schema
        published.languages.update(table.column("lang").to_pylist())
        scores += table.column("score").to_pylist()
        room = SHOWN_IMAGES - len(published.records)
        published.records += from_table(table.slice(0, room), ImageRecord)
    if scores:
        published.scores = summarise(scores)
    return published


def summarise(scores: Sequence[float], bins: int = 20) -> ScoreSummary:
    """Some scores, one at least, as a few figures."""
    low, high = min(scores), max(scores)
    step = (high - low) / bins or 1.0
    places = Counter(min(int((score - low) / step), bins - 1) for score in scores)
    counts = tuple(places[place] for place in range(bins))
    return ScoreSummary(low, sum(scores) / len(scores), high, counts)


def _metadata(storage: Storage, manifest: ShardManifest) -> pa.Table:
    try:
        return storage.read_table(manifest.metadata.path)
    except DamagedError as error:
        raise DamagedError(
            f"{error} To make its shard again: rudalle-flows verify "
            f"{shlex.quote(storage.public_path())} --repair, and then the run."
        ) from None


# --- contact sheet -----------------------------------------------------------------------------


def write_contact_sheet(
    storage: Storage,
    config: RunConfig,
    run: RunManifest,
    records: Sequence[ImageRecord],
    names: Sequence[str],
) -> bool:
    """Write `contact_sheet.png` with the best images; whether there is one."""
    chosen = choose_for_sheet(records, config.publish.contact_sheet)
    if not chosen:
        storage.delete(layout.CONTACT_SHEET)
        return False
    tiles = read_tiles(storage, chosen)
    figures = [f"{figure} {label}" for figure, label in _facts(run.totals)]
    facts = [" · ".join(figures), " · ".join(names), f"seed {config.seed}"]
    sheet = draw_contact_sheet(tiles, config.name, facts)
    storage.write_bytes(layout.CONTACT_SHEET, encode_contact_sheet(sheet))
    return True


def read_tiles(storage: Storage, records: Sequence[ImageRecord]) -> list[Tile]:
    """Published pictures with their prompts and scores."""
    pictures = PublishedPictures(storage)
    return [
        Tile(
            Image.open(io.BytesIO(pictures.read(record.path, record.image_id))),
            record.text,
            f"{record.score:.3f}",
        )
        for record in records
    ]


def choose_for_sheet(records: Sequence[ImageRecord], count: int) -> list[ImageRecord]:
    """The best image of every prompt, then the second best ..., up to `count`, in their order."""
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
        (f"{sum(sums.rejected.values()):,}", "set aside"),
    ]
