"""What all tasks have in common in Prefect: names, retries, no caching of its own."""

from __future__ import annotations

from typing import Any

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from rudalle_lib.errors import TransientError

RETRY_DELAYS = (2, 8, 20, 40)
"""Seconds between tries of a task, before jitter: an outage of about a minute is outlasted. Every
request has been tried several times by then (`file_systems.RETRIES`)."""


def may_pass(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether another try may help: what failed is storage in a bad moment, and nothing else."""
    return isinstance(state.data, TransientError)


OPTIONS: dict[str, Any] = {
    "retries": len(RETRY_DELAYS),
    "retry_delay_seconds": list(RETRY_DELAYS),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": may_pass,
    # Object storage is the only truth: a result that Prefect remembers could be stale.
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


def run_name(stage: str) -> str:
    """The template of a task run's name, such as "decode 00012"."""
    return stage + " {job.shard.index:05d}"
