"""Turns on devices: within a process, across runs, and as Ray assigns them."""

from __future__ import annotations

import heapq
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Literal

import torch
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency

from rudalle_lib.config.runtime import RuntimeConfig
from rudalle_lib.digests import digest_of
from rudalle_lib.runtime.devices import resolve_devices

Queue = Literal["draw", "images"]
"""What a task does on a device: drawing tokens, or anything else. A GPU can do both at once."""


FIRST_SHARD_SECONDS = 5.0
"""How long a CPU waits at most, after each task of the first shard, for the next one. Otherwise all
images of the second shard are drawn before the first image of a run is published."""


class PriorityLock:
    """A lock that goes to the waiting shard with the lowest index, so that shards get finished.

    Args:
        first_seconds: how long it is kept, after `begin` and after each task of the first shard,
            for further tasks of this shard; until `finish` is called for it. The first one is that
            with the lowest index so far.
    """

    def __init__(self, first_seconds: float = 0.0) -> None:
        self._changed = threading.Condition()
        self._waiting: list[int] = []
        self._locked = False
        self._first: int | None = None
        self._first_seconds = first_seconds
        self._kept_until = 0.0

    @contextmanager
    def hold(self, shard: int) -> Iterator[None]:
        """Wait for the lock and hold it.

        Args:
            shard: index of the shard that waits.
        """
        with self._changed:
            heapq.heappush(self._waiting, shard)
            self._note(shard)
            while not self._is_turn_of(shard):
                self._changed.wait(self._seconds_kept() or None)
            heapq.heappop(self._waiting)
            self._locked = True
        try:
            yield
        finally:
            with self._changed:
                self._locked = False
                self._keep_for(shard)
                self._changed.notify_all()

    def begin(self, shard: int) -> None:
        """Keep the lock for a shard that will need it soon, if it is the first one."""
        with self._changed:
            self._note(shard)
            self._keep_for(shard)

    def finish(self, shard: int) -> None:
        """Keep the lock no longer for a shard: it needs it no more."""
        with self._changed:
            if shard == self._first:
                self._first_seconds = self._kept_until = 0.0
                self._changed.notify_all()

    def _note(self, shard: int) -> None:
        self._first = shard if self._first is None else min(shard, self._first)

    def _keep_for(self, shard: int) -> None:
        """Keep the lock for further tasks of a shard, if it is the first one."""
        if shard == self._first:
            self._kept_until = time.monotonic() + self._first_seconds

    def _is_turn_of(self, shard: int) -> bool:
        if self._locked or self._waiting[0] != shard:
            return False
        return shard == self._first or not self._seconds_kept()

    def _seconds_kept(self) -> float:
        """For how long the lock is kept for tasks of the first shard; 0 if it is not."""
        return max(0.0, self._kept_until - time.monotonic())


def queue_lock(device: torch.device, queue: Queue) -> PriorityLock:
    """The lock of a device's queue in this process; a CPU has one queue for everything."""
    first_seconds = FIRST_SHARD_SECONDS if device.type == "cpu" else 0.0
    return _lock(queue_name(device, queue), first_seconds)


def begin_on_cpu(shard: int) -> None:
    """Note that a shard will have tasks for the CPU of this process."""
    queue_lock(torch.device("cpu"), "images").begin(shard)


def finish_on_cpu(shard: int) -> None:
    """Note that a shard has no more tasks for the CPU of this process."""
    queue_lock(torch.device("cpu"), "images").finish(shard)


def queue_name(device: torch.device, queue: Queue) -> str:
    """A name for a device's queue."""
    return str(device) if device.type == "cpu" or queue == "draw" else f"{device} {queue}"


def device_id(device: torch.device) -> str:
    """What tells a device apart from those of other processes and machines, without their names."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    own = visible if device.type == "cuda" else os.getpid()
    return digest_of([socket.gethostname(), own, str(device)])[:12]


@cache
def _lock(name: str, first_seconds: float) -> PriorityLock:
    return PriorityLock(first_seconds)


def devices_for(runtime: RuntimeConfig, shard: int, all_devices: bool) -> tuple[torch.device, ...]:
    """The devices of a task: those that Ray assigned to it, else one, in turn by shard.

    Args:
        runtime: names the runner, and the devices of the local one.
        shard: index of the shard.
        all_devices: return all devices, for a network that is spread over them.

    Raises:
        SettingsError: a device that this machine does not have.
    """
    if runtime.runner == "ray":
        import ray

        return ray_devices(ray.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    devices = resolve_devices(runtime.devices)
    turn = shard % len(devices)
    return tuple(devices if all_devices else devices[turn : turn + 1])


def ray_devices(gpus: Sequence[int | str], visible: str | None) -> tuple[torch.device, ...]:
    """The torch devices of GPUs that Ray assigned; the CPU if it assigned none.

    Args:
        gpus: as `ray.get_gpu_ids` returns them.
        visible: CUDA_VISIBLE_DEVICES, the GPUs that this process can see. Torch numbers those from
            0, and Ray does not.
    """
    order = visible.split(",") if visible else None
    indices = [int(gpu) if order is None else order.index(str(gpu)) for gpu in gpus]
    return tuple(torch.device("cuda", index) for index in indices) or (torch.device("cpu"),)


@contextmanager
def limited_across_runs(devices: Sequence[torch.device], queue: Queue = "images") -> Iterator[None]:
    """Hold devices' queues on this machine exclusively among all runs of a Prefect server."""
    names = [limit_name(socket.gethostname(), device, queue) for device in devices]
    for name in names:
        _ensure_limit(name, os.environ.get("PREFECT_API_URL"))
    # A server that is down for a minute must not cost hours of work.
    with concurrency(names, strict=True, raise_on_lease_renewal_failure=False):
        yield


def limit_name(host: str, device: torch.device, queue: Queue = "images") -> str:
    """The name of the global concurrency limit of a device's queue, as Prefect shows it."""
    return f"rudalle-flows {host} {queue_name(device, queue)}"


@cache
def _ensure_limit(name: str, _server: str | None) -> None:
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(name, 1)
