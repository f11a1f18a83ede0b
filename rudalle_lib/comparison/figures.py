"""The figures of a finished dataset that can be compared with those of another one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from rudalle_lib.comparison.sample import PromptSample, Row, SampleFigures, measure_sample
from rudalle_lib.dataset.manifests import read_shard_manifests, require_run_manifest
from rudalle_lib.errors import ConfigError
from rudalle_lib.humanize import did_you_mean
from rudalle_lib.prompts.plan import read_extras, read_plan
from rudalle_lib.schema.records import RunManifest, ShardManifest, ShardSpec
from rudalle_lib.schema.tables import as_text
from rudalle_lib.storage.storage import Storage

COLUMNS = ("image_id", "prompt_id", "path", "score", "embedding")
"""Columns of the metadata that are read; the last one may be missing."""

NO_VALUE = "(none)"
"""The group of prompts that have no value in the column."""


@dataclass
class Slice:
    """Some prompts of a dataset, or all of them.

    Attributes:
        prompts: number of prompts.
        drawn: candidate images.
        scores: of the published images.
    """

    prompts: int = 0
    drawn: int = 0
    scores: list[float] = field(default_factory=list)

    @property
    def kept(self) -> int:
        """Published images."""
        return len(self.scores)

    @property
    def acceptance(self) -> float | None:
        """Published images per candidate, 0 to 1; None if nothing was drawn."""
        return self.kept / self.drawn if self.drawn else None

    @property
    def mean_score(self) -> float | None:
        """Mean score of the published images; None without images."""
        return sum(self.scores) / self.kept if self.scores else None

    def add(self, other: Slice) -> None:
        """Add the prompts and images of another slice."""
        self.prompts += other.prompts
        self.drawn += other.drawn
        self.scores += other.scores


@dataclass(frozen=True)
class Figures:
    """A dataset in figures.

    Attributes:
        url: public URL of the output.
        run: its last run.
        whole: all prompts.
        groups: prompts by the value of a column; empty if none was named.
        sample: what was measured on images of a sample of prompts.
        seconds: device seconds per published image, of all shards; None without images.
        cost: likewise, in the currency of the run; None without a price.
    """

    url: str
    run: RunManifest
    whole: Slice
    groups: Mapping[str, Slice]
    sample: SampleFigures
    seconds: float | None
    cost: float | None


EMBEDDING = "embedding"
"""The column of the metadata that holds ruCLIP's features of an image, if they are published."""


def has_embeddings(run: RunManifest) -> bool:
    """Whether the images of a run are published with their embeddings."""
    scoring, publishing = (run.config.get(name, {}) for name in ("score", "publish"))
    return bool(scoring.get("embeddings") and publishing.get("embeddings"))


def read_figures(storage: Storage, by: str | None = None, embeddings: bool = False) -> Figures:
    """Read the figures of a finished dataset.

    Args:
        storage: its output.
        by: a column of the prompt table that groups prompts.
        embeddings: measure diversity by embeddings, which the dataset must have, not by
            perceptual hashes.

    Raises:
        StorageError, ShardError: there is no finished run, or it is damaged.
        ConfigError: the prompt table had no such column.
    """
    run, manifests = require_run_manifest(storage), read_shard_manifests(storage)
    plan = {shard.index: shard for shard in read_plan(storage)}
    whole, groups, sample = Slice(), defaultdict[str, Slice](Slice), PromptSample()
    columns: set[str] = set()
    for manifest in manifests:
        group_of = _groups(storage, plan[manifest.index], by, columns)
        table = storage.read_table(manifest.metadata.path, COLUMNS)
        sample.add(_sample_rows(table, embeddings))
        for group, part in _slices(storage, manifest, table, group_of).items():
            groups[group].add(part)
            whole.add(part)
    if by is not None and by not in columns:
        raise ConfigError(
            f"No prompt table of {storage.public_path()} had a column {by!r}"
            f"{did_you_mean(by, columns)}: expected {', '.join(sorted(columns)) or 'no column'}."
        )
    return Figures(
        url=storage.public_path(),
        run=run,
        whole=whole,
        groups={} if by is None else dict(sorted(groups.items())),
        sample=measure_sample(storage, sample.prompts, embeddings),
        seconds=3600 * run.usage.device_hours / whole.kept if whole.kept else None,
        cost=run.usage.cost_per_published,
    )


def _groups(
    storage: Storage, shard: ShardSpec, by: str | None, columns: set[str]
) -> dict[str, str]:
    """The group of each prompt of a shard, by its id; adds the shard's columns to `columns`."""
    extras = read_extras(storage, shard)
    columns.update(extras.column_names[1:])
    ids = extras.column("prompt_id").to_pylist()
    if by is None or by not in extras.column_names[1:]:
        return dict.fromkeys(ids, NO_VALUE)
    values = extras.column(extras.column_names.index(by, 1)).to_pylist()
    return {
        name: NO_VALUE if value is None else as_text(value)
        for name, value in zip(ids, values, strict=True)
    }


def _slices(
    storage: Storage,
    manifest: ShardManifest,
    table: pa.Table,
    group_of: Mapping[str, str],
) -> dict[str, Slice]:
    """The prompts and images of a shard by group."""
    slices = defaultdict[str, Slice](Slice)
    for group in group_of.values():
        slices[group].prompts += 1
    published = table.column("prompt_id").to_pylist()
    for prompt_id, score in zip(published, table.column("score").to_pylist(), strict=True):
        slices[group_of[prompt_id]].scores.append(score)
    for prompt_id in published + _rejected_images(storage, manifest):
        slices[group_of[prompt_id]].drawn += 1
    return slices


def _sample_rows(table: pa.Table, embeddings: bool) -> list[Row]:
    """What a sample needs of the published images of a shard."""
    rows: list[Row] = table.select(["image_id", "prompt_id", "path"]).to_pylist()
    if not embeddings or EMBEDDING not in table.column_names:
        return rows
    vectors = table.column(EMBEDDING).to_pylist()
    return [{**row, "vector": vector} for row, vector in zip(rows, vectors, strict=True)]


def _rejected_images(storage: Storage, manifest: ShardManifest) -> list[str]:
    """The prompt id of every rejected image."""
    if manifest.rejects is None:
        return []
    table = storage.read_table(manifest.rejects.path, ["prompt_id", "image_id"])
    return [row["prompt_id"] for row in table.to_pylist() if row["image_id"] is not None]
