"""Who gets a device next, which one, and how work on it is dropped when the run stops."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from functools import lru_cache

import pytest
import torch

from rudalle_lib.config_runtime import RuntimeConfig
from rudalle_lib.errors import StoppedError
from tasks import loaded_models
from tasks.devices_in_turn import Turnstile, given_devices
from tasks.loaded_models import device_slot
from tasks.progress import reporter
from tasks.stopping import stop_at_the_end, stop_if_asked


def cuda(*indices: int) -> tuple[torch.device, ...]:
    return tuple(torch.device("cuda", index) for index in indices)


def test_the_shard_of_the_lowest_number_goes_first() -> None:
    stile, order = Turnstile(), []

    def work(shard: int) -> None:
        with stile.hold(shard):
            order.append(shard)

    with ThreadPoolExecutor(4) as pool, ExitStack() as held:
        held.enter_context(stile.hold(9))
        for shard in (3, 1, 2, 1):
            pool.submit(work, shard)
        while len(stile._waiting) < 4:
            time.sleep(0.01)
        assert order == []
        held.close()
    assert order == [1, 1, 2, 3]


@pytest.mark.parametrize(
    ("gpus", "visible", "devices"),
    [
        ([], None, (torch.device("cpu"),)),
        ([1], None, cuda(1)),
        ([0, 3], None, cuda(0, 3)),
        ([6], "4,6", cuda(1)),
        (["GPU-b"], "GPU-a,GPU-b", cuda(1)),
    ],
)
def test_gpus_that_ray_gives_are_devices_of_torch(
    gpus: list[int | str], visible: str | None, devices: tuple[torch.device, ...]
) -> None:
    assert given_devices(gpus, visible) == devices


def test_networks_on_a_gpu_that_was_given_back_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    @lru_cache
    def loader(device: torch.device) -> object:
        return object()

    monkeypatch.setattr(loaded_models, "_LOADERS", (loader,))
    monkeypatch.setattr(loaded_models, "_gpus_in_use", set())
    seen = []
    for devices in (cuda(0), (torch.device("cpu"),), cuda(0, 1), cuda(2), cuda(2)):
        loaded_models._forget_other_devices(devices)
        seen.append(loader.cache_info().currsize)
        loader(devices[0])
    assert seen == [0, 1, 2, 0, 1]


def test_the_threads_of_a_task_end_with_it() -> None:
    """Else every thread of the runner would keep a pool, and pools of many tasks get in each
    other's way.
    """

    def work() -> tuple[int, int]:
        with device_slot(RuntimeConfig(devices="cpu", threads=2), 0):
            torch.randn(4_000_000).sin_()
            during = len(os.listdir("/proc/self/task"))
        return during, len(os.listdir("/proc/self/task"))

    before = torch.get_num_threads()
    with ThreadPoolExecutor(1) as pool:
        during, after = pool.submit(work).result()
    torch.set_num_threads(before)
    assert after == during - 1


def test_work_is_dropped_between_two_steps_once_the_run_is_left() -> None:
    report = reporter("generate", 0)
    report(1, 2)
    with stop_at_the_end(), ThreadPoolExecutor(1) as pool:
        inside = copy_context()
        pool.submit(inside.run, report, 1, 2).result()
    with pytest.raises(StoppedError, match="asked to stop"):
        inside.run(report, 2, 2)
    stop_if_asked()  # the next run is not meant

    def wait_for_device() -> None:
        with device_slot(RuntimeConfig(devices="cpu"), 0):
            raise AssertionError("no work is begun any more")

    with pytest.raises(StoppedError):
        inside.run(wait_for_device)
