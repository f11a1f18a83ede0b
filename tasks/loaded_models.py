"""The models of this process: each loaded once, each device used by one heavy task at a time.

The only module-wide state of the project, because a network of gigabytes has to outlive the task
that needed it first. Everything in it can be made again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache

import torch

from rudalle_lib import weights as loading
from rudalle_lib.config import RuntimeConfig, WeightsConfig
from rudalle_lib.devices import resolve_devices, resolve_dtype, set_threads
from rudalle_lib.memory import clear_out_of_memory
from rudalle_lib.records import NO_DEVICE, DeviceUse
from rudalle_lib.translation import Translator
from rudalle_lib.weights import LoadedDecoder, LoadedScorer, LoadedUpscaler, LoadedVqGan


@dataclass
class DeviceSlot:
    """Devices that are this task's alone; how long and until when, once they are given back."""

    devices: tuple[torch.device, ...]
    seconds: float = 0.0
    use: DeviceUse = NO_DEVICE

    @property
    def device(self) -> torch.device:
        """The first of them, for all that needs only one."""
        return self.devices[0]


@contextmanager
def device_slot(
    runtime: RuntimeConfig, shard_index: int, every: bool = False
) -> Iterator[DeviceSlot]:
    """Wait for the device of a shard and hold it; shards take devices in turn.

    Args:
        runtime: names the devices.
        shard_index: of the shard.
        every: hold all of them, for a network that is spread over them.

    Raises:
        SettingsError: a device that this machine does not have.
        OutOfMemoryError: memory ran out while the slot was held.
    """
    devices = resolve_devices(runtime.devices)
    turn = shard_index % len(devices)
    slot = DeviceSlot(tuple(devices if every else devices[turn : turn + 1]))
    asked = time.perf_counter()
    with ExitStack() as locks:
        for device in slot.devices:  # always in the same order, so that nobody waits in a ring
            locks.enter_context(_device_lock(str(device)))
        set_threads(runtime.threads)
        started = time.perf_counter()
        with clear_out_of_memory("the network of this stage beside what it works on"):
            yield slot
        slot.seconds = time.perf_counter() - started
        until = datetime.now(UTC).isoformat(timespec="milliseconds")
        slot.use = DeviceUse(round(started - asked, 3), len(slot.devices), until)


# Loaders are called with the device's slot held, so no model is loaded twice at once.


@lru_cache(maxsize=8)
def decoder(
    name: str, weights: WeightsConfig, devices: tuple[torch.device, ...], dtype: str
) -> LoadedDecoder:
    """The decoder `name`, in the precision of the run, its layers spread over the devices."""
    return loading.load_decoder(name, weights, devices, resolve_dtype(dtype, devices[0]))


@lru_cache(maxsize=8)
def vqgan(name: str, weights: WeightsConfig, device: torch.device) -> LoadedVqGan:
    """The VQ-GAN `name`, in float32: the 8 bits of a bfloat16 show as bands in an even sky."""
    return loading.load_vqgan(name, weights, device)


@lru_cache(maxsize=8)
def scorer(name: str, weights: WeightsConfig, device: torch.device) -> LoadedScorer:
    """The ruCLIP `name`, in float32: candidates differ by less than bfloat16 can tell."""
    return loading.load_scorer(name, weights, device)


@lru_cache(maxsize=8)
def upscaler(name: str, weights: WeightsConfig, device: torch.device) -> LoadedUpscaler:
    """The super-resolution network `name`, in float32, as the VQ-GAN."""
    return loading.load_upscaler(name, weights, device)


@lru_cache(maxsize=8)
def translator(name: str, weights: WeightsConfig, device: torch.device) -> Translator:
    """The translator `name`, in float32."""
    return loading.load_translator(name, weights, device)


@cache
def _device_lock(device: str) -> threading.Lock:
    return threading.Lock()
