"""A whole run on the tiny stack without Prefect: the tasks are called in order."""

from __future__ import annotations

import shutil
from pathlib import Path

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.manifests import read_shard_manifests
from rudalle_lib.pipeline.diff import compare
from rudalle_lib.pipeline.selected import decide
from rudalle_lib.pipeline.stages import weight_digests
from rudalle_lib.prompts.plan import plan_run
from rudalle_lib.report.report import write_report
from rudalle_lib.schema.records import RunManifest
from rudalle_lib.storage.storage import Storage
from tests.support.tiny_run import TABLE
from tests.support.tiny_stack import write_tiny_stack


def tiny_config(folder: Path, output: str, table: str = TABLE) -> RunConfig:
    """The configuration of a small run; its table and models are written to `folder`."""
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
    """A small finished run; its table, models and output (`out`) are in `folder`."""
    config = tiny_config(folder, str(folder / "out"))
    finish(config)
    return config


def finish(config: RunConfig) -> RunManifest:
    """Run all stages that are not finished, and the report."""
    # Prefect's settings must be set before this.
    from tasks.without_prefect import process_shard, score_shard

    storage, weights = Storage(config.output), weight_digests(config)
    plan = plan_run(config, storage)
    damaged: list[str] = []
    finished = read_shard_manifests(storage, damaged.append)
    choices, selector = decide(config, weights, storage, plan.shards, finished)
    if config.select.looks_across:
        unscored = [shard for shard in plan.shards if shard.index not in selector.indices]
        selector.read(score_shard(config, weights, shard) for shard in unscored)
        choices = selector.decide()
    for shard in compare(config, weights, plan.shards, finished, choices).todo:
        process_shard(config, weights, shard, choice=choices.of(shard.index))
    started, selection = "2026-01-01T00:00:00+00:00", choices.record(plan.shards)
    return write_report(storage, config, weights, len(plan.shards), started, selection=selection)


def in_form(config: RunConfig, output: Path, **changes: object) -> RunConfig:
    """The configuration with other settings of `publish`, and an output that has all stages.

    `finish` publishes it without drawing anything, if the stages of `config` are finished.
    """
    for part in ("plan", "stages"):
        if not (output / part).exists():
            shutil.copytree(Path(config.output) / part, output / part)
    publish = config.publish.model_copy(update=changes)
    return config.model_copy(update={"publish": publish, "output": str(output)})
