"""A whole run on the tiny stack without Prefect: its tasks as plain functions, in order."""

from __future__ import annotations

from pathlib import Path

from rudalle_lib.config import RunConfig
from rudalle_lib.difference import compare
from rudalle_lib.manifest import read_shard_manifests
from rudalle_lib.planning import plan_run
from rudalle_lib.records import RunManifest
from rudalle_lib.report import write_report
from rudalle_lib.stages import weight_digests
from rudalle_lib.storage import Storage
from tests.tiny_run import TABLE
from tests.tiny_stack import write_tiny_stack


def tiny_config(folder: Path, output: str, table: str = TABLE) -> RunConfig:
    """A small run, its table and models below `folder`."""
    (folder / "prompts.csv").write_text(table, encoding="utf-8")
    weights = folder / "weights"
    if not weights.exists():
        write_tiny_stack(weights)
    return RunConfig.model_validate({
        "name": "tiny",
        "seed": 3,
        "output": output,
        "prompts": {"uri": str(folder / "prompts.csv"), "shard_size": 2},
        "weights": {"folder": str(weights), "offline": True},
        "runtime": {"devices": "cpu", "threads": 1},
        "generate": {"images": 4, "batch_size": 8},
        "score": {"keep_best": 2},
        "publish": {"contact_sheet": 4},
    })  # fmt: skip


def finished_below(folder: Path) -> RunConfig:
    """A small run that is finished, its output in `out`."""
    config = tiny_config(folder, str(folder / "out"))
    finish(config)
    return config


def finish(config: RunConfig) -> RunManifest:
    """Make what is missing of a run."""
    from tasks.plain import work_on  # imports prefect, which its settings must come before

    storage, weights = Storage(config.output), weight_digests(config)
    plan = plan_run(config, storage)
    damaged: list[str] = []
    finished = read_shard_manifests(storage, damaged.append)
    for shard in compare(config, weights, plan.shards, finished).todo:
        work_on(config, weights, shard)
    return write_report(storage, config, weights, len(plan.shards), "2026-01-01T00:00:00+00:00")
