"""Yield by group: how many images were drawn and published, by a column of the prompt table.

Groups with a low yield need other prompts, another threshold, or more images per prompt.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from rudalle_lib.dataset import layout
from rudalle_lib.escaping import markdown_text
from rudalle_lib.prompts.rows import EXTRA
from rudalle_lib.schema.records import ShardManifest
from rudalle_lib.storage.storage import Storage

PROMPTS, DRAWN, PUBLISHED = "prompts", "drawn", "published"
"""Counts of a group."""

MAX_GROUPS = 100
"""Most groups in the report, those with the most prompts; all others are one more."""

NO_GROUP, OTHERS = "(none)", "(others)"
"""Groups of prompts whose column is empty, and of those in small groups."""

Yields = Mapping[str, Mapping[str, int]]
"""Counts by group."""


def measure_yields(
    storage: Storage, manifests: Sequence[ShardManifest], column: str
) -> dict[str, dict[str, int]]:
    """Count prompts, images drawn and images published by group, one shard at a time.

    Args:
        storage: the output.
        manifests: of the finished shards.
        column: a pass-through column. Shards whose prompts don't have it are one group.

    Returns:
        The groups in alphabetical order.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for manifest in manifests:
        group_of = _groups(storage, manifest.index, column)
        published = _column(storage, manifest.metadata.path, "prompt_id")
        rejected = _rejected_images(storage, manifest)
        for group in group_of.values():
            counts[group][PROMPTS] += 1
        for prompt_id in (*published, *rejected):
            counts[group_of[prompt_id]][DRAWN] += 1
        for prompt_id in published:
            counts[group_of[prompt_id]][PUBLISHED] += 1
    return _bounded(counts)


def render_yields(yields: Yields, column: str) -> str:
    """Render the counts as a Markdown table with a row for all groups; empty without groups."""
    if not yields:
        return ""
    sums = {name: sum(row[name] for row in yields.values()) for name in (PROMPTS, DRAWN, PUBLISHED)}
    rows = [*((markdown_text(group), row) for group, row in yields.items()), ("**all**", sums)]
    lines = [
        f"| {name} | {row[PROMPTS]:,} | {row[DRAWN]:,} | {row[PUBLISHED]:,} "
        f"| {row[PUBLISHED] / row[DRAWN] if row[DRAWN] else 0:.0%} |"
        for name, row in rows
    ]
    head = f"| {markdown_text(column)} | prompts | images drawn | published | yield |"
    return "\n".join([head, "| :--- | ---: | ---: | ---: | ---: |", *lines, ""])


def _groups(storage: Storage, shard: int, column: str) -> dict[str, str]:
    """The group of each prompt of a shard."""
    plan = storage.read_table(layout.plan_path(shard))
    ids = plan.column("prompt_id").to_pylist()
    name = EXTRA + column
    values = plan.column(name).to_pylist() if name in plan.column_names else [None] * len(ids)
    groups = (NO_GROUP if value in (None, "") else str(value) for value in values)
    return dict(zip(ids, groups, strict=True))


def _rejected_images(storage: Storage, manifest: ShardManifest) -> list[str]:
    """The prompt of each image that was drawn and not published."""
    if manifest.rejects is None:
        return []
    rows = storage.read_table(manifest.rejects.path, ["prompt_id", "image_id"]).to_pylist()
    return [row["prompt_id"] for row in rows if row["image_id"] is not None]


def _column(storage: Storage, path: str, name: str) -> list[str]:
    values: list[str] = storage.read_table(path, [name]).column(0).to_pylist()
    return values


def _bounded(counts: Mapping[str, Counter[str]]) -> dict[str, dict[str, int]]:
    largest = sorted(counts, key=lambda group: (-counts[group][PROMPTS], group))
    shown = {group: counts[group] for group in sorted(largest[:MAX_GROUPS])}
    if len(largest) > MAX_GROUPS:
        shown[OTHERS] = sum((counts[group] for group in largest[MAX_GROUPS:]), Counter())
    names = (PROMPTS, DRAWN, PUBLISHED)
    return {group: {name: row[name] for name in names} for group, row in shown.items()}
