"""What Prefect's pages log about task runs: one line with figures for each that has completed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.logging.loggers import get_run_logger, task_run_logger

from rudalle_lib.escaping import safe_text
from rudalle_lib.humanize import counted, duration, reasons
from rudalle_lib.pipeline.stages import STAGES
from rudalle_lib.prompts.plan import Plan
from rudalle_lib.schema.records import RejectRecord, RunManifest, ShardManifest, StageArtifact

LOGGER = "prefect.task_runs"
"""The logger of the lines that Prefect itself writes about task runs."""

HOOKS = ("log_result", "log_failure")
"""Names of the functions below that Prefect calls, and says so."""

REPLACED = (
    *(f"Running hook {name!r}" for name in HOOKS),
    *(f"Hook {name!r} " for name in HOOKS),
    "Finished in state Completed(",
)
"""Beginnings of lines that say nothing beside ours."""

REJECTS_SHOWN = 10
"""Rejected prompts of a shard that get a line of their own."""


def log_result(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> None:
    """Log what a completed task has made; a hook of all tasks."""
    begin = run.start_time.timestamp() if run.start_time else 0.0
    line = describe_result(task.name, state.result(raise_on_failure=False), begin)
    if line:
        task_run_logger(run, task).info("%s: %s", run.name, line)


def log_failure(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> None:
    """Log which rows of the prompt table a failed task had; a hook of all tasks."""
    context = TaskRunContext.get()
    job = None if context is None else context.parameters.get("job")
    if job is not None:
        task_run_logger(run, task).error("%s failed; it has %s", run.name, job.shard)


def log_rejects(rejects: Sequence[RejectRecord]) -> None:
    """Log the prompts of a shard that were rejected, with their rows of the prompt table."""
    with suppress(MissingContextError):  # outside of a run
        logger = get_run_logger()
        for row in rejects[:REJECTS_SHOWN]:
            logger.warning("%s: %s (%s)", row.prompt_id, safe_text(row.detail), row.reason)
        if len(rejects) > REJECTS_SHOWN:
            logger.warning(
                "... and %s more; all are in rejects/",
                counted(len(rejects) - REJECTS_SHOWN, "rejected prompt"),
            )


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
