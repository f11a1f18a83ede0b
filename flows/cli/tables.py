"""The tables that commands print."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from flows.cli.options import source_of
from flows.console import SafeConsole
from rudalle_lib.escaping import safe_line, safe_text
from rudalle_lib.humanize import counted, reasons, size
from rudalle_lib.pipeline.diff import KEPT, MISSING, WITHDRAWN
from rudalle_lib.pipeline.stages import STAGES
from rudalle_lib.report.dataset_card import usage_rows
from rudalle_lib.report.prometheus import prometheus_text
from rudalle_lib.storage.storage import Storage

if TYPE_CHECKING:
    from flows.cli.outlook import Outlook, RulesOutlook
    from rudalle_lib.checks.faults import Audit  # imports torch
    from rudalle_lib.comparison.drift import Comparison
    from rudalle_lib.config.run import RunConfig
    from rudalle_lib.pipeline.diff import Difference
    from rudalle_lib.pipeline.status import Status
    from rudalle_lib.pipeline.tidy import StageFiles, Tidied
    from rudalle_lib.prompts.plan import Plan
    from rudalle_lib.registry import ModelEntry
    from rudalle_lib.schema.decisions import GroupCounts, RuleCounts


def print_outlook(config: RunConfig, outlook: Outlook) -> None:
    """Print what a run of a configuration would do."""
    plan, difference = outlook.plan, outlook.difference
    rows = [
        ("difference", describe_difference(outlook.needs, plan, difference)),
        *(("damaged", sentence) for sentence in outlook.damaged),
        ("prompt table", f"{config.prompts.uri}, {plan.rows:,} rows"),
        ("rejected rows", reasons(plan.rejected) or "none"),
        ("prompts", f"{plan.prompts:,}, {plan.new_prompts:,} of them new"),
        ("shards", _shards(difference)),
        ("stages to redo", _stages(difference)),
        ("images to draw", _to_draw(outlook)),
        ("output", Storage(config.output).public_path()),
    ]
    if outlook.shard_size_of:
        shards = [name for name, _ in rows].index("shards")
        size = f"{counted(plan.shard_size or 0, 'prompt')}, {outlook.shard_size_of}"
        rows.insert(shards + 1, ("  of at most", size))
    if plan.removed:
        rows.append(("removed prompts", f"{plan.removed:,}; their images are kept"))
    if outlook.selection is not None:
        rows[1:1] = describe_rules(outlook.selection, len(plan.shards))
    print_pairs(config.name, rows)
    SafeConsole().print("Nothing was written.", style="bright_black")


def _to_draw(outlook: Outlook) -> str:
    if outlook.images == outlook.most_images:
        return f"{outlook.images:,}"
    return f"at least {outlook.images:,}, at most {outlook.most_images:,}"


WIDE = 120
"""Columns from which a terminal has room for the sources of models beside them."""

NEEDS = {
    "": "unchanged",
    MISSING: "to draw",
    KEPT: "kept",
    "translate": "to translate and redraw",
    "generate": "to redraw",
    "decode": "to decode again",
    "score": "to score again",
    "upscale": "to upscale only",
    "cutout": "to cut out only",
    "publish": "to publish only",
    WITHDRAWN: "to withdraw",
}
"""What a run would do with images, by the first stage that has to run again."""


def describe_difference(needs: Mapping[str, int], plan: Plan, difference: Difference) -> str:
    """Return a summary: "12,310 images unchanged, 402 to upscale only, 96 new prompts"."""
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


MAX_GROUPS = 20
"""Groups of a rule that are printed; `--json` has all."""


def describe_rules(selection: RulesOutlook, shards: int) -> list[tuple[str, str]]:
    """Return what each rule would keep, in all and by group, of the images that are scored.

    Args:
        selection: the rules, and what they keep.
        shards: number of planned shards.
    """
    rejected = reasons(selection.rejected)
    first = f"{counted(selection.images, 'image')} scored"
    if selection.shards < shards:
        first += f" in {selection.shards:,} of {counted(shards, 'shard')}"
    rows = [("selection", f"{first}; {rejected or 'none'} rejected before the rules")]
    for number, rule in enumerate(selection.rules):
        rows.append((f"  rule {number}", f"{rule.rule}: {_kept(rule)}"))
        shown = rule.groups if len(rule.groups) > 1 else ()
        for group in shown[:MAX_GROUPS]:
            least = "" if group.lowest is None else f", from score {group.lowest:.3f}"
            rows.append(("", f"  {group.group}: {_kept(group)}{least}"))
        if len(shown) > MAX_GROUPS:
            rows.append(("", f"  and {counted(len(shown) - MAX_GROUPS, 'more group')}"))
    return rows


def _kept(counts: RuleCounts | GroupCounts) -> str:
    return f"{counts.kept:,} of {counts.before:,} kept, {counts.before - counts.kept:,} dropped"


def print_status(url: str, status: Status) -> None:
    """Print the progress and the figures of the run in an output."""
    sums = status.totals
    print_pairs(status.run.name if status.run else Storage(url).public_path(), [
        ("shards", f"{sums.shards:,} of {status.planned:,} finished"),
        ("prompts", f"{sums.prompts:,} in finished shards"),
        ("images", f"{sums.images:,} drawn, {sums.kept:,} published"),
        ("rejected", reasons(sums.rejected) or "nothing"),
        ("image files", f"{sums.image_bytes / 1e6:,.1f} MB"),
        ("seconds per stage", _by_stage(sums.seconds)),
        ("seconds waiting", _by_stage(sums.waiting)),
        ("last run", _last_run(status)),
        *_usage(status),
    ])  # fmt: skip


def print_metrics(url: str, status: Status) -> None:
    """Print the figures of the run in an output in Prometheus' text format."""
    name = status.run.name if status.run else Storage(url).public_path()
    sys.stdout.write(prometheus_text(name, status.planned, status.run, status.totals))


def print_audit(title: str, audit: Audit, max_faults: int) -> None:
    """Print what was checked, and up to `max_faults` faults and as many notes."""
    checked = ", ".join(f"{count:,} {what}" for what, count in sorted(audit.checked.items()))
    kinds = Counter(str(fault.kind) for fault in audit.faults)
    rows = [("checked", checked), ("faults", reasons(kinds) or "none")]
    rows += [(fault.kind, f"{fault.path}: {fault.detail}") for fault in audit.faults[:max_faults]]
    rows += [("note", note) for note in audit.notes[:max_faults]]
    hidden = sum(max(len(found) - max_faults, 0) for found in (audit.faults, audit.notes))
    if hidden:
        rows.append(("", f"and {hidden:,} more"))
    print_pairs(title, rows)


def print_tidied(title: str, keep: str, tidied: Tidied) -> None:
    """Print the size of the artifacts by stage, before and after, and what a change then costs."""
    rows = [
        (stage, f"{counted(files.files, 'file')}, {size(files.bytes)}{_dropped(files)}")
        for stage, files in tidied.stages.items()
    ]
    rows.append(("stages/", f"{size(tidied.before)} before, {size(tidied.after)} after"))
    if tidied.left_alone:
        left = counted(len(tidied.left_alone), "shard")
        rows.append(("left alone", f"{left} with work of a run that is not finished"))
    if tidied.shards:
        rows.append(("a change costs", _cost_of_change(keep, tidied)))
    print_pairs(title, rows)


def _dropped(files: StageFiles) -> str:
    if not files.dropped:
        return ", kept"
    all_of_them = files.dropped == files.files
    return f", {'deleted' if all_of_them else f'{files.dropped:,} of them deleted'}"


def _cost_of_change(keep: str, tidied: Tidied) -> str:
    images, shards = counted(tidied.images, "image"), counted(tidied.shards, "shard")
    again = {
        "decoded": f"to enlarge and cut out the published images of {shards} again",
        "tokens": f"to decode {images} again; nothing is drawn again",
        "nothing": f"to draw {images} again",
    }
    return again[keep]


def print_comparison(found: Comparison) -> None:
    """Print the figures of two datasets side by side, and those of their groups."""
    from rudalle_lib.comparison.rows import comparison_rows, group_rows, shares

    console = SafeConsole()
    for title, figures in (("before", found.before), ("after", found.after)):
        line = Text(f"{title:<8}", style="bright_black")
        console.print(line + Text(safe_line(f"{figures.url}, {figures.run.finished}")))
    table = _side_by_side("", "before", "after", "change")
    for row in comparison_rows(found):
        style = "red" if row.measure in found.exceeded else ""
        cells = (row.label, row.before, row.after, row.change)
        table.add_row(*(Text(safe_text(cell)) for cell in cells), style=style)
    console.print(table)
    if found.after.groups:
        table = _side_by_side("group", "accepted before", "after", "mean score before", "after")
        for name, was, now in group_rows(found):
            table.add_row(Text(safe_text(name)), *shares(was, now))
        console.print(table)


def _side_by_side(first: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bright_black", show_edge=False)
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def print_models(entries: Sequence[ModelEntry]) -> None:
    """Print models; in a narrow terminal, sources are below descriptions."""
    console = SafeConsole()
    wide = console.width >= WIDE
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in ("name", "kind", "description", *(["source"] if wide else [])):
        table.add_column(column, no_wrap=column in ("name", "kind"), overflow="fold")
    for entry in entries:
        source = safe_line(source_of(entry))
        about = entry.about if wide else f"{entry.about}\n{source}"
        table.add_row(entry.name, entry.kind, about, *([source] if wide else []))
    console.print(table)


def print_pairs(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print a title, and under it one row per label and value."""
    console = SafeConsole()
    table = Table(box=None, pad_edge=False, show_header=False, show_edge=False)
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(safe_line(name), Text(safe_text(value)))
    console.print(Text(safe_line(title), style="bold"))
    console.print(table)


def _shards(difference: Difference) -> str:
    new, changed = len(difference.new), len(difference.changed)
    return f"{new:,} new, {changed:,} changed, {len(difference.unchanged):,} unchanged"


def _stages(difference: Difference) -> str:
    counts = Counter(stage for _, stages in difference.changed for stage in stages)
    found = [f"{stage} in {counts[stage]:,}" for stage in STAGES if counts[stage]]
    return ", ".join(found) or "none"


def _by_stage(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{stage} {seconds[stage]:,.1f}" for stage in STAGES if stage in seconds)


def _usage(status: Status) -> list[tuple[str, str]]:
    rows = usage_rows(status.run.usage) if status.run else []
    return [(label[0].lower() + label[1:], value) for label, value in rows]


def _last_run(status: Status) -> str:
    if status.run is None:
        return "not finished yet"
    began, ended = map(_utc, (status.run.started, status.run.finished))
    end = "%H:%M:%S" if began.date() == ended.date() else "%Y-%m-%d %H:%M:%S"
    return f"{began:%Y-%m-%d %H:%M:%S} to {ended:{end}} UTC"


def _utc(moment: str) -> datetime:
    """A moment in ISO 8601, in UTC."""
    return datetime.fromisoformat(moment).astimezone(UTC)
