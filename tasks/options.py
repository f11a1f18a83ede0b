"""What all tasks have in common in Prefect: names, retries, no caching of its own."""

from __future__ import annotations

from typing import Any

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import exponential_backoff

from rudalle_lib.errors import StorageError


def may_pass(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether another try may help: storage and network have bad moments, the rest has bugs."""
    return isinstance(state.data, StorageError | ConnectionError | TimeoutError)


OPTIONS: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(backoff_factor=1),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": may_pass,
    # Object storage is the only truth: a result that Prefect remembers could be stale.
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


def run_name(stage: str) -> str:
    """The template of a task run's name, such as "decode 00012"."""
    return stage + " {job.shard.index:05d}"
