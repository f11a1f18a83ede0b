"""Which shard gets a device next, and which devices a task gets."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch

from rudalle_lib.config.runtime import RuntimeConfig
from rudalle_lib.errors import SettingsError
from tasks.runtime.device_locks import (
    PriorityLock,
    devices_for,
    limit_name,
    queue_lock,
    ray_devices,
)

CPU = torch.device("cpu")


def cuda(*indices: int) -> tuple[torch.device, ...]:
    return tuple(torch.device("cuda", index) for index in indices)


def test_the_waiting_shard_with_the_lowest_index_goes_first() -> None:
    lock = PriorityLock()
    order: list[int] = []

    def work(shard: int) -> None:
        with lock.hold(shard):
            order.append(shard)

    with ThreadPoolExecutor(4) as pool, ExitStack() as held:
        held.enter_context(lock.hold(9))
        for shard in (3, 1, 2, 1):
            pool.submit(work, shard)
        while len(lock._waiting) < 4:
            time.sleep(0.01)
        assert order == []
        held.close()
    assert order == [1, 1, 2, 3]


def test_the_first_shard_goes_on_before_others_begin() -> None:
    lock = PriorityLock(first_seconds=3.0)
    order: list[str] = []

    def work(shard: int, *stages: str) -> None:
        for stage in stages:
            with lock.hold(shard):
                order.append(stage)
            time.sleep(0.05)  # between two tasks of a shard nobody holds the lock

    with ThreadPoolExecutor(2) as pool:
        lock.begin(0)  # while it does what needs no device
        pool.submit(work, 1, "translate the next shard")
        while not lock._waiting:
            time.sleep(0.01)
        pool.submit(work, 0, "draw", "decode", "score").result()
        lock.finish(0)
    assert order == ["draw", "decode", "score", "translate the next shard"]


def test_a_shard_that_comes_later_is_the_first_one_if_its_index_is_lower() -> None:
    lock = PriorityLock(first_seconds=60.0)
    with ThreadPoolExecutor(1) as pool:
        with lock.hold(1):
            lock.begin(0)
        other = pool.submit(lambda: lock.hold(2).__enter__())
        with lock.hold(0):
            assert not other.done()
        lock.finish(0)
        other.result()


@pytest.mark.parametrize("finished", [False, True])
def test_a_lock_is_kept_for_the_first_shard_until_it_is_finished(finished: bool) -> None:
    """... or for a while, if nobody says that it is, as after a failure."""
    lock = PriorityLock(first_seconds=60.0 if finished else 0.2)
    with ThreadPoolExecutor(1) as pool:
        with lock.hold(0):
            pass
        began = time.monotonic()
        waiting = pool.submit(lambda: lock.hold(1).__enter__())
        while not lock._waiting and not waiting.done():
            time.sleep(0.01)
        lock.finish(1)  # not the first one
        if finished:
            lock.finish(0)
        waiting.result()
        assert (finished or time.monotonic() - began > 0.1) and time.monotonic() - began < 30


def test_a_lock_is_released_by_an_exception() -> None:
    lock = PriorityLock()
    with pytest.raises(KeyError), lock.hold(0):
        raise KeyError
    with lock.hold(1):
        pass


def test_a_gpu_has_a_lock_for_each_queue_and_a_cpu_has_one() -> None:
    first, second = cuda(0, 1)
    draw = queue_lock(first, "draw")
    assert draw is queue_lock(first, "draw")
    assert draw is not queue_lock(second, "draw")
    assert draw is not queue_lock(first, "images")
    assert queue_lock(CPU, "draw") is queue_lock(CPU, "images")


def test_shards_use_the_devices_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.runtime.device_locks.resolve_devices", lambda _: list(cuda(0, 1)))
    runtime = RuntimeConfig()
    assert [devices_for(runtime, shard, False) for shard in range(3)] == [cuda(0), cuda(1), cuda(0)]
    assert devices_for(runtime, 1, all_devices=True) == cuda(0, 1)


def test_the_devices_are_those_of_the_settings() -> None:
    assert devices_for(RuntimeConfig(devices="cpu"), 5, False) == (CPU,)
    with pytest.raises(SettingsError, match="'cuda:99' was not found"):
        devices_for(RuntimeConfig(devices="cuda:99"), 0, False)


@pytest.mark.parametrize(
    ("gpus", "visible", "devices"),
    [
        ([], None, (CPU,)),
        ([1], None, cuda(1)),
        ([0, 3], None, cuda(0, 3)),
        ([6], "4,6", cuda(1)),
        (["GPU-b"], "GPU-a,GPU-b", cuda(1)),
    ],
)
def test_gpus_of_ray_become_devices_of_torch(
    gpus: list[int | str], visible: str | None, devices: tuple[torch.device, ...]
) -> None:
    assert ray_devices(gpus, visible) == devices


def test_a_limit_names_the_machine_and_the_device() -> None:
    assert limit_name("host", cuda(1)[0], "draw") == "rudalle-flows host cuda:1"
    assert limit_name("host", cuda(1)[0], "images") == "rudalle-flows host cuda:1 images"
    assert limit_name("host", CPU, "images") == "rudalle-flows host cpu"
