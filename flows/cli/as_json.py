"""What commands print with `--json`: one JSON object or list, for scripts.

Keys stay as they are within a major version; new ones may be added.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from flows.cli.options import source_of

if TYPE_CHECKING:
    from flows.cli.outlook import Outlook
    from rudalle_lib.checks.faults import Audit
    from rudalle_lib.config.run import RunConfig
    from rudalle_lib.pipeline.status import Status
    from rudalle_lib.registry import ModelEntry


def print_json(value: Any) -> None:
    """Print a value as indented JSON in ASCII, which every terminal and every reader takes."""
    typer.echo(json.dumps(value, indent=2, default=str))


def outlook_values(config: RunConfig, outlook: Outlook) -> dict[str, Any]:
    """Return what a run would do."""
    plan, difference = outlook.plan, outlook.difference
    redone = Counter(stage for _, stages in difference.changed for stage in stages)
    return {
        "name": config.name,
        "output": _public(config.output),
        "prompt_table": {"url": plan.table, "rows": plan.rows, "rejected": dict(plan.rejected)},
        "prompts": {"planned": plan.prompts, "new": plan.new_prompts, "removed": plan.removed},
        "shards": {
            "new": len(difference.new),
            "changed": len(difference.changed),
            "unchanged": len(difference.unchanged),
            "prompts_per_new_shard": plan.shard_size,
            "shard_size_chosen": outlook.shard_size_of or None,
        },
        "images": {(need or "unchanged"): count for need, count in outlook.needs.items()},
        "images_to_draw": outlook.images,
        "images_to_draw_at_most": outlook.most_images,
        "stages_to_redo": dict(redone),
        "damaged": list(outlook.damaged),
        "selection": asdict(outlook.selection) if outlook.selection else None,
    }


def status_values(url: str, status: Status) -> dict[str, Any]:
    """Return the progress and the figures of a run."""
    run = status.run
    return {
        "name": run.name if run else None,
        "output": _public(url),
        "shards_planned": status.planned,
        "finished": asdict(status.totals),
        "last_run": None
        if run is None
        else {
            "started": run.started,
            "finished": run.finished,
            "usage": asdict(run.usage) if run.usage else None,
            "scores": asdict(run.scores) if run.scores else None,
        },
    }


def audit_values(url: str, audit: Audit) -> dict[str, Any]:
    """Return what was checked, and all faults and notes."""
    return {
        "output": _public(url),
        "checked": dict(audit.checked),
        "faults": [asdict(fault) for fault in audit.faults],
        "notes": list(audit.notes),
    }


def model_values(entries: Sequence[ModelEntry]) -> list[dict[str, str]]:
    """Return models and where they come from."""
    return [
        {
            "name": entry.name,
            "kind": entry.kind,
            "description": entry.about,
            "source": source_of(entry),
            "licence": entry.licence,
        }
        for entry in entries
    ]


def _public(url: str) -> str:
    from rudalle_lib.storage.storage import Storage

    return Storage(url).public_path()
