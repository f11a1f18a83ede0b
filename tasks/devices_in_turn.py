"""Devices, one heavy task at a time: within a process, across runs, and as Ray hands them out."""

from __future__ import annotations

import heapq
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency

from rudalle_lib.config_runtime import RuntimeConfig
from rudalle_lib.devices import resolve_devices


class Turnstile:
    """A lock that the waiting shard of the lowest number gets next, so that shards get finished."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[int] = []
        self._taken = False

    @contextmanager
    def hold(self, shard: int) -> Iterator[None]:
        """Wait for the turn of a shard and keep all others out."""
        with self._changed:
            heapq.heappush(self._waiting, shard)
            self._changed.wait_for(lambda: not self._taken and self._waiting[0] == shard)
            heapq.heappop(self._waiting)
            self._taken = True
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify_all()


@cache
def turnstile(device: str) -> Turnstile:
    """The one of a device, in this process."""
    return Turnstile()


def devices_for(runtime: RuntimeConfig, shard: int, every: bool) -> tuple[torch.device, ...]:
    """The devices of a task: those that Ray gave it, else one, in turn by shard.

    Args:
        runtime: names the runner, and the devices of the local one.
        shard: index of the shard.
        every: all devices, for a network that is spread over them.

    Raises:
        SettingsError: a device that this machine does not have.
    """
    if runtime.runner == "ray":
        import ray

        return given_devices(ray.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    devices = resolve_devices(runtime.devices)
    turn = shard % len(devices)
    return tuple(devices if every else devices[turn : turn + 1])


def given_devices(gpus: Sequence[int | str], visible: str | None) -> tuple[torch.device, ...]:
    """GPUs by their names in Ray as devices of torch; the CPU where Ray gave none.

    `visible` is CUDA_VISIBLE_DEVICES: what of the machine this process sees, which torch counts
    from 0 and Ray does not.
    """
    seen = visible.split(",") if visible else None
    places = [int(gpu) if seen is None else seen.index(str(gpu)) for gpu in gpus]
    return tuple(torch.device("cuda", place) for place in places) or (torch.device("cpu"),)


@contextmanager
def limited_across_runs(devices: Sequence[torch.device]) -> Iterator[None]:
    """Hold devices of this machine against all other runs of the same Prefect server."""
    names = [limit_name(socket.gethostname(), device) for device in devices]
    for name in names:
        _ensure_limit(name, os.environ.get("PREFECT_API_URL"))
    # A server that is away for a minute must not cost the work of hours.
    with concurrency(names, strict=True, raise_on_lease_renewal_failure=False):
        yield


def limit_name(host: str, device: torch.device) -> str:
    """The name of a device's global concurrency limit, as people see it in Prefect."""
    return f"rudalle-flows {host} {device}"


@cache
def _ensure_limit(name: str, _server: str | None) -> None:
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(name, 1)
