"""Pools of both kinds of workers, and calls of tasks on them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rudalle_lib.config.inputs import WeightsConfig
from rudalle_lib.config.runtime import RuntimeConfig
from rudalle_lib.schema.records import ShardSpec
from tasks.runtime.job import Job
from tasks.runtime.worker_pool import WorkerPool

ROOT = Path(__file__).resolve().parents[2]
TASKS = "tests.support.worker_tasks"

RAY_WORKERS = 2
"""Workers for which `running_ray` has room."""


def job(shard: int) -> Job:
    """A job on a shard that is nowhere."""
    spec = ShardSpec(shard, f"plan/{shard:05d}.parquet", 1, "fingerprint")
    return Job(spec, "out", RuntimeConfig(), WeightsConfig())


def call(pool: WorkerPool, name: str, shard: int = 0, **parameters: Any) -> Any:
    """Run a task of `worker_tasks` for a shard, and return its result."""
    return pool.call(TASKS, name, {"job": job(shard), **parameters})


def devices(count: int) -> list[str]:
    """Names of GPUs, which no task of `worker_tasks` uses."""
    return [f"cuda:{index}" for index in range(count)]


@contextmanager
def running_ray() -> Iterator[None]:
    """Run Ray with room for some workers, whose processes import this tree."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_worker_register_timeout_seconds", "600")
        patch.setenv("RAY_raylet_start_wait_time_s", "300")
        ray.init(
            address="local", num_cpus=8, num_gpus=RAY_WORKERS, include_dashboard=False,
            log_to_driver=False,
        )  # fmt: skip
        yield
        ray.shutdown()


def ray_pool(workers: int = RAY_WORKERS, shards: int = 12) -> WorkerPool:
    """A pool of workers on Ray."""
    from tasks.runtime.ray_worker import RayWorker

    needs = {"num_cpus": 1.0, "num_gpus": 1.0}
    return WorkerPool([RayWorker(needs, shards) for _ in range(workers)])


def wait_until_ready(pool: WorkerPool, count: int) -> None:
    """Wait until so many workers of a pool are ready."""
    until = time.monotonic() + 60
    while (ready := sum(worker.is_ready for worker in pool.workers)) < count:
        assert time.monotonic() < until, f"{ready} of {count} workers are ready"
        time.sleep(0.05)
