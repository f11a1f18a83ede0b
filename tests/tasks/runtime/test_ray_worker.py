"""Shards on the workers of a real Ray: they stay with theirs, and deaths cost nothing."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from rudalle_lib.errors import ShardError, StoppedError
from tasks.runtime.events import Event, Noticed, listener
from tasks.runtime.worker_pool import MAX_DEATHS, WorkerPool
from tests.support.worker_pools import (
    RAY_WORKERS,
    TASKS,
    call,
    job,
    ray_pool,
    wait_until_ready,
)

pytestmark = pytest.mark.slow

SHARDS = 12


@pytest.fixture
def pool(started_ray: None) -> Iterator[WorkerPool]:
    with closing(ray_pool()) as pool:
        wait_until_ready(pool, RAY_WORKERS)
        yield pool


def wait_for_end(pid: int) -> None:
    until = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < until, f"{pid} has not ended"
        time.sleep(0.05)


def test_all_stages_of_a_shard_run_on_one_worker_and_all_workers_are_busy(
    pool: WorkerPool, tmp_path: Path
) -> None:
    stages = ("generate", "publish")
    for stage in stages:
        (tmp_path / stage).mkdir()

    def shard(index: int) -> set[int]:
        return {
            call(pool, stage, index, folder=str(tmp_path / stage), seconds=0.1)[0]
            for stage in stages
        }

    with ThreadPoolExecutor(2 * RAY_WORKERS) as flow:
        done = list(flow.map(shard, range(SHARDS)))
    assert {len(processes) for processes in done} == {1}
    shards_of = Counter(process for processes in done for process in processes)
    assert len(shards_of) == RAY_WORKERS and min(shards_of.values()) >= SHARDS // RAY_WORKERS // 3
    assert len(list((tmp_path / "publish").iterdir())) == SHARDS


@pytest.mark.parametrize("how", ["killed", "broken"])
def test_the_shard_of_an_actor_that_died_is_done_elsewhere_and_it_is_replaced(
    how: str, pool: WorkerPool, tmp_path: Path
) -> None:
    events: list[Event] = []
    token = listener.set(events.append)
    try:
        done_by = call(pool, "die_once", 3, folder=str(tmp_path), how=how)
    finally:
        listener.reset(token)
    died = int((tmp_path / "died").read_text())
    assert done_by != died
    wait_for_end(died)
    (noticed,) = [event for event in events if isinstance(event, Noticed)]
    assert f"({died}) has died; die_once of shard 00003 is started again" in noticed.message
    wait_until_ready(pool, RAY_WORKERS)


def test_a_task_that_kills_every_actor_fails_and_its_workers_are_left_out(
    pool: WorkerPool, tmp_path: Path
) -> None:
    for _ in range(RAY_WORKERS * MAX_DEATHS):
        with pytest.raises(ShardError, match=r"processes died.*die_once|no GPU is left"):
            call(pool, "die_once", folder=str(tmp_path), how="always")
        if all(worker.is_lost for worker in pool.workers):
            break
    with pytest.raises(ShardError, match="no GPU is left"):
        call(pool, "generate", folder=str(tmp_path), seconds=0)


def test_a_worker_without_room_waits_gets_no_shard_and_takes_room_that_appears(
    started_ray: None, tmp_path: Path
) -> None:
    with closing(ray_pool(RAY_WORKERS + 1)) as pool:
        wait_until_ready(pool, RAY_WORKERS)
        with ThreadPoolExecutor(SHARDS) as flow:
            work = partial(call, pool, "generate", folder=str(tmp_path), seconds=0.1)
            done = list(flow.map(work, range(SHARDS)))
        assert len({pid for pid, _ in done}) == RAY_WORKERS
        (waiting,) = [worker for worker in pool.workers if not worker.is_ready]
        assert waiting.description == "Ray has not placed one that needs 1 CPUs and 1 GPUs"
        next(worker for worker in pool.workers if worker is not waiting).hang_up()
        wait_until_ready(pool, RAY_WORKERS)
        assert waiting.is_ready


def test_actors_end_with_the_pool_even_while_they_work(started_ray: None, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as flow:
        with closing(ray_pool(1)) as pool:
            running = flow.submit(call, pool, "step", folder=str(tmp_path), seconds=60.0)
            while not (marks := list(tmp_path.glob("pid *"))):
                time.sleep(0.05)
        with pytest.raises(StoppedError, match="The run has ended"):
            running.result(timeout=10)
    wait_for_end(int(marks[0].name.removeprefix("pid ")))


def test_an_idle_actor_gives_its_memory_back_and_a_busy_one_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tasks.runtime import ray_worker
    from tasks.runtime.worker_process import Call, Returned

    freed: list[float] = []
    monkeypatch.setattr(ray_worker, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr(
        ray_worker, "free_memory_of_idle_process", lambda: freed.append(time.monotonic())
    )
    monkeypatch.setattr(ray_worker, "send_warnings", lambda send: None)
    actor = ray_worker.Actor()
    time.sleep(0.5)
    assert freed
    parameters = {"job": job(0), "folder": str(tmp_path), "seconds": 1.0}
    actor.begin(Call(5, TASKS, "generate", parameters))
    time.sleep(0.2)
    freed.clear()
    (report,) = actor.reports(5)
    assert report == Returned(5, (os.getpid(), "auto"))
    assert len(freed) <= 1, "a busy actor gives nothing back"
    time.sleep(0.5)
    assert freed
