"""Prefect options of all tasks: names, retries, and no caching by Prefect."""

from __future__ import annotations

from typing import Any

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from rudalle_lib.errors import TransientError
from tasks.runtime.run_logs import log_failure, log_result, replace_lines

RETRY_DELAYS = (2, 8, 20, 40)
"""Seconds between attempts of a task, before jitter: enough for an outage of about a minute. By
then every request has been retried several times (`storage.filesystems.RETRIES`)."""


def should_retry(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether Prefect should retry a task: only after a storage error that may go away."""
    return isinstance(state.data, TransientError)


OPTIONS: dict[str, Any] = {
    "retries": len(RETRY_DELAYS),
    "retry_delay_seconds": list(RETRY_DELAYS),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": should_retry,
    # Storage is the only source of truth: a result that Prefect caches could be stale.
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "on_completion": [log_result],
    "on_failure": [log_failure],
}

replace_lines()


def run_name(stage: str) -> str:
    """The template of a task run's name; it becomes, for example, "decode 00012"."""
    return stage + " {job.shard.index:05d}"
