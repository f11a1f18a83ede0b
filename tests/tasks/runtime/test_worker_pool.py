"""Shards on several devices, each with a process: all busy, none twice, and deaths cost nothing."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rudalle_lib.errors import ShardError, TransientError
from tasks.runtime.events import Event, Noticed, listener
from tasks.runtime.process_worker import process_pool
from tasks.runtime.worker_pool import MAX_ATTEMPTS, MAX_DEATHS, WorkerPool
from tests.support.worker_pools import TASKS, call, devices, job

SHARDS = 20


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    with closing(process_pool(devices(2))) as pool:
        yield pool


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_device_is_busy_and_no_shard_is_done_twice(count: int, tmp_path: Path) -> None:
    for stage in ("generate", "publish"):
        (tmp_path / stage).mkdir()

    def shard(workers: WorkerPool, index: int) -> list[tuple[int, str]]:
        return [
            call(workers, stage, index, folder=str(tmp_path / stage), seconds=0.1)
            for stage in ("generate", "publish")
        ]

    with closing(process_pool(devices(count))) as workers, ThreadPoolExecutor(2 * count) as flow:
        done = list(flow.map(partial(shard, workers), range(SHARDS)))
    assert [len(set(stages)) for stages in done] == [1] * SHARDS, "a shard stays with its process"
    shards_of = Counter(device for (_, device), _ in done)
    assert sorted(shards_of) == devices(count)
    processes = defaultdict(set)
    for (pid, device), _ in done:
        processes[device].add(pid)
    assert {len(pids) for pids in processes.values()} == {1}, "a device has one process"
    assert min(shards_of.values()) >= SHARDS // count // 3, shards_of
    assert len(list((tmp_path / "publish").iterdir())) == SHARDS


@pytest.mark.parametrize("how", ["killed", "broken"])
def test_the_shard_of_a_process_that_died_is_done_elsewhere(
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
    assert not Path(f"/proc/{died}").exists()
    (noticed,) = [event for event in events if isinstance(event, Noticed)]
    assert f"({died}) has died; die_once of shard 00003 is started again" in noticed.message
    usable = [worker for worker in pool.workers if worker.is_ready]
    assert len(usable) == 2, "the device is used again"


def test_shards_on_other_devices_do_not_notice_a_death(pool: WorkerPool, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as flow:
        steady = flow.submit(call, pool, "step", 0, folder=str(tmp_path), seconds=1.0)
        time.sleep(0.2)  # so that it is the first
        dying = flow.submit(call, pool, "die_once", 1, folder=str(tmp_path), how="killed")
        assert steady.result() == dying.result(), "the only process that was left"
    assert len(list(tmp_path.glob("pid *"))) == 1, "it was started once"


def test_a_task_that_kills_every_process_fails_and_its_devices_are_left_out(
    pool: WorkerPool, tmp_path: Path
) -> None:
    with pytest.raises(ShardError, match=f"{MAX_ATTEMPTS} processes died.*die_once"):
        call(pool, "die_once", folder=str(tmp_path), how="always")
    assert 2 * MAX_DEATHS == 2 * MAX_ATTEMPTS
    with pytest.raises(ShardError, match="processes died|no GPU is left"):
        call(pool, "die_once", folder=str(tmp_path), how="always")
    assert [worker.is_ready for worker in pool.workers] == [False, False]
    with pytest.raises(ShardError, match="no GPU is left"):
        call(pool, "generate", folder=str(tmp_path), seconds=0)


def test_all_workers_can_be_asked_and_those_that_are_lost_do_not_count(
    pool: WorkerPool, tmp_path: Path
) -> None:
    def ask(name: str, **parameters: Any) -> list[Any]:
        return pool.ask_all(TASKS, name, {"job": job(0), **parameters})

    first, second = ask("where")
    assert (first[1], second[1]) == ("cuda:0", "cuda:1") and first[0] != second[0]
    with pytest.raises(TransientError, match="no answer"):
        ask("fail", error="known")
    for _ in range(MAX_DEATHS):
        assert ask("die_once", folder=str(tmp_path), how="always") == []
    assert ask("where") == []
