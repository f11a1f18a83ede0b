"""What Prefect's pages log about task runs: one line with figures for each that has completed."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging.loggers import task_run_logger

from rudalle_lib.humanize import counted, duration, reasons
from rudalle_lib.pipeline.stages import STAGES
from rudalle_lib.prompts.plan import Plan
from rudalle_lib.schema.records import RunManifest, ShardManifest, StageArtifact

LOGGER = "prefect.task_runs"
"""The logger of the lines that Prefect itself writes about task runs."""

REPLACED = ("Running hook 'log_result'", "Hook 'log_result' ", "Finished in state Completed(")
"""Beginnings of lines that say nothing beside ours."""


def log_result(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> None:
    """Log what a completed task has made; a hook of all tasks."""
    begin = run.start_time.timestamp() if run.start_time else 0.0
    line = describe_result(task.name, state.result(raise_on_failure=False), begin)
    if line:
        task_run_logger(run, task).info("%s: %s", run.name, line)


def describe_result(stage: str, result: object, begin: float = 0.0) -> str:
    """Describe the result of a task in a line.

    Args:
        stage: name of the task.
        result: what it has returned.
        begin: Unix time at which it began; what was made earlier has no speed.

    Returns:
        For example "192 candidates in 4.1 s, 46.8 per second"; empty for a result of another kind.
    """
    if isinstance(result, StageArtifact):
        if result.until and datetime.fromisoformat(result.until).timestamp() < begin:
            return f"{counted(result.rows, STAGES[stage].per)} of an earlier run"
        done = f"{counted(result.rows, STAGES[stage].per)} in {duration(result.seconds)}"
        speed = f", {result.rows / result.seconds:,.1f} per second" if result.seconds else ""
        waited = f", after waiting {duration(result.waited)}" if result.waited >= 1 else ""
        return done + speed + waited
    if isinstance(result, ShardManifest):
        why = f" ({reasons(result.rejected)})" if result.rejected else ""
        return (
            f"{counted(result.prompts, 'prompt')}, {result.kept:,} of "
            f"{counted(result.images, 'image')} published, {sum(result.rejected.values()):,} "
            f"rejected{why}"
        )
    if isinstance(result, Plan):
        shards = counted(len(result.shards), "shard")
        return f"{counted(result.prompts, 'prompt')} in {shards}, {result.new_prompts:,} new"
    if isinstance(result, RunManifest):
        sums = result.totals
        return f"{sums.kept:,} of {counted(sums.images, 'image')} published so far"
    return ""


class _WithoutReplaced(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Drop the lines that `log_result` replaces."""
        return not record.getMessage().startswith(REPLACED)


def replace_lines() -> None:
    """Drop the lines of Prefect in this process that `log_result` replaces."""
    logger = logging.getLogger(LOGGER)
    if not any(isinstance(one, _WithoutReplaced) for one in logger.filters):
        logger.addFilter(_WithoutReplaced())
