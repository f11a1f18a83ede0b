"""What the commands plan, status, verify and models print."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.progress import counted, reasons
from rudalle_lib import registry
from rudalle_lib.config import RunConfig
from rudalle_lib.dataset_card import describe_usage
from rudalle_lib.difference import Difference, compare, images_by_need
from rudalle_lib.manifest import read_shard_manifests
from rudalle_lib.metrics import prometheus_text
from rudalle_lib.planning import Plan, count_images, plan_run
from rudalle_lib.preflight import check_fit, check_inputs
from rudalle_lib.stages import STAGES, weight_digests
from rudalle_lib.status import Status, read_status
from rudalle_lib.storage import Storage

if TYPE_CHECKING:
    from rudalle_lib.faults import Audit  # imports torch


def print_difference(config: RunConfig) -> None:
    """What a run of this configuration would do."""
    check_inputs(config)
    weights = weight_digests(config)
    check_fit(config)
    storage = Storage(config.output)
    plan = plan_run(config, storage, write=False)
    damaged: list[str] = []
    manifests = read_shard_manifests(storage, damaged.append)
    difference = compare(config, weights, plan.shards, manifests)
    needs = images_by_need(storage, config, difference, manifests)
    rows = [
        ("difference", describe(needs, plan, difference)),
        *(("damaged", sentence) for sentence in damaged),
        ("prompt table", f"{config.prompts.uri}, {plan.rows:,} rows"),
        ("rejected rows", reasons(plan.rejected) or "none"),
        ("prompts", f"{plan.prompts:,}, {plan.new_prompts:,} of them new"),
        ("not in the table", f"{plan.removed:,} planned prompts; they and their images stay"),
        ("shards", _shards(difference)),
        ("stages to redo", _stages(difference)),
        ("images to draw", f"{_images(config, storage, plan, difference):,}"),
        ("output", storage.public_path()),
    ]
    print_pairs(config.name, rows)
    Console(highlight=False).print("Nothing has been written.", style="bright_black")


NEEDS = {
    "": "unchanged",
    "translate": "need translating and drawing anew",
    "generate": "need drawing anew",
    "decode": "need decoding anew",
    "score": "need scoring anew",
    "upscale": "need upscaling only",
    "cutout": "need cutting out only",
    "publish": "need publishing only",
}
"""How `describe` says what images need, by the first stage that has to run again."""


def describe(needs: Mapping[str, int], plan: Plan, difference: Difference) -> str:
    """What a run would do: "12,310 images unchanged, 402 need upscaling only, 96 new prompts"."""
    parts = [f"{count:,} {NEEDS[stage]}" for stage, count in needs.items()]
    if needs:
        first = next(iter(needs))
        noun = "image" if needs[first] == 1 else "images"
        parts[0] = f"{needs[first]:,} {noun} {NEEDS[first]}"
    added = set(plan.new_shards)
    waiting = sum(shard.rows for shard in difference.new if shard.index not in added)
    if waiting:
        parts.append(f"{counted(waiting, 'planned prompt')} not finished")
    if plan.new_prompts or not parts:
        parts.append(counted(plan.new_prompts, "new prompt"))
    return ", ".join(parts)


def print_status(url: str) -> None:
    """How far the run in an output is."""
    status = read_status(Storage(url))
    sums = status.totals
    print_pairs(status.run.name if status.run else Storage(url).public_path(), [
        ("shards", f"{sums.shards:,} of {status.planned:,} finished"),
        ("prompts", f"{sums.prompts:,} in finished shards"),
        ("images", f"{sums.images:,} drawn, {sums.kept:,} published"),
        ("set aside", reasons(sums.rejected) or "nothing"),
        ("size", f"{sums.image_bytes / 1e6:,.1f} MB of images"),
        ("seconds", _by_stage(sums.seconds)),
        ("waiting", _by_stage(sums.waiting)),
        ("last run", _last_run(status)),
        *(describe_usage(status.run.usage) if status.run else []),
    ])  # fmt: skip


def print_metrics(url: str) -> None:
    """The same as Prometheus text."""
    storage = Storage(url)
    status = read_status(storage)
    name = status.run.name if status.run else storage.public_path()
    sys.stdout.write(prometheus_text(name, status.planned, status.run, status.totals))


def print_audit(title: str, audit: Audit, most: int) -> None:
    """What was checked, and at most so many faults and notes."""
    looked = ", ".join(f"{count:,} {what}" for what, count in sorted(audit.checked.items()))
    kinds = Counter(str(fault.kind) for fault in audit.faults)
    rows = [("checked", looked), ("faults", reasons(kinds) or "none")]
    rows += [(fault.kind, f"{fault.path}: {fault.detail}") for fault in audit.faults[:most]]
    rows += [("note", note) for note in audit.notes[:most]]
    left = max(len(audit.faults) - most, 0) + max(len(audit.notes) - most, 0)
    if left:
        rows.append(("", f"and {left:,} more"))
    print_pairs(title, rows)


def print_models() -> None:
    """Every model of the registry."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in ("name", "kind", "what", "from"):
        table.add_column(column, no_wrap=column != "what")
    for name in registry.names():
        entry = registry.get(name)
        source = entry.repository or "in the package"
        table.add_row(entry.name, entry.kind, entry.about, source)
    Console(highlight=False).print(table)


def print_pairs(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """A title, and facts under it: what, and its value."""
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False, show_edge=False)
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    console.print(Text(title, style="bold"))
    console.print(table)


def _shards(difference: Difference) -> str:
    new, changed = len(difference.new), len(difference.changed)
    return f"{new:,} new, {changed:,} changed, {len(difference.unchanged):,} unchanged"


def _stages(difference: Difference) -> str:
    counts = Counter(stage for _, stages in difference.changed for stage in stages)
    found = [f"{stage} in {counts[stage]:,}" for stage in STAGES if counts[stage]]
    return ", ".join(found) or "none"


def _images(config: RunConfig, storage: Storage, plan: Plan, difference: Difference) -> int:
    """Candidates of new shards and of those whose tokens would change."""
    redrawn = {shard.index for shard, stages in difference.changed if "generate" in stages}
    known = [
        shard
        for shard in plan.shards
        if shard.index not in plan.new_shards
        and (shard.index in redrawn or shard in difference.new)
    ]
    return plan.new_images + sum(
        count_images(storage, shard, config.generate.images) for shard in known
    )


def _by_stage(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{stage} {seconds[stage]:,.1f}" for stage in STAGES if stage in seconds)


def _last_run(status: Status) -> str:
    if status.run is None:
        return "none has ended yet"
    return f"{status.run.started} to {status.run.finished}"
