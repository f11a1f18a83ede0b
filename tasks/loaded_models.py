"""The models of this process: each loaded once, each device used by one heavy task at a time.

The only module-wide state of the project, because a network of gigabytes has to outlive the task
that needed it first. Everything in it can be made again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

import torch

from rudalle_lib import weights as loading
from rudalle_lib.config import WeightsConfig
from rudalle_lib.config_runtime import RuntimeConfig
from rudalle_lib.devices import release_threads, resolve_dtype, set_threads
from rudalle_lib.memory import clear_out_of_memory, release
from rudalle_lib.records import NO_DEVICE, DeviceUse
from rudalle_lib.translation import Translator
from rudalle_lib.weights import (
    LoadedDecoder,
    LoadedScorer,
    LoadedSegmenter,
    LoadedUpscaler,
    LoadedVqGan,
)
from tasks.devices_in_turn import devices_for, limited_across_runs, turnstile
from tasks.stopping import stop_if_asked


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
    """Wait for the device of a shard and hold it.

    Args:
        runtime: names the devices.
        shard_index: of the shard.
        every: hold all of them, for a network that is spread over them.

    Raises:
        SettingsError: a device that this machine does not have.
        OutOfMemoryError: memory ran out while the slot was held.
        StoppedError: the run was asked to stop in the meantime.
    """
    slot = DeviceSlot(devices_for(runtime, shard_index, every))
    asked = time.perf_counter()
    with ExitStack() as held:
        for device in slot.devices:  # always in the same order, so that nobody waits in a ring
            held.enter_context(turnstile(str(device)).hold(shard_index))
        if runtime.limit_devices and runtime.runner == "local":
            held.enter_context(limited_across_runs(slot.devices))
        stop_if_asked()
        if runtime.runner == "ray":
            _forget_other_devices(slot.devices)
        set_threads(runtime.threads)
        started = time.perf_counter()
        with clear_out_of_memory("the network of this stage beside what it works on"):
            try:
                yield slot
            finally:
                release_threads()
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
def vqgan(name: str, weights: WeightsConfig, device: torch.device, dtype: str) -> LoadedVqGan:
    """The VQ-GAN `name`; `dtype` is that of its decoder."""
    return loading.load_vqgan(name, weights, device, resolve_dtype(dtype, device))


@lru_cache(maxsize=8)
def scorer(name: str, weights: WeightsConfig, device: torch.device, dtype: str) -> LoadedScorer:
    """The ruCLIP `name`."""
    return loading.load_scorer(name, weights, device, resolve_dtype(dtype, device))


@lru_cache(maxsize=8)
def upscaler(name: str, weights: WeightsConfig, device: torch.device, dtype: str) -> LoadedUpscaler:
    """The super-resolution network `name`."""
    return loading.load_upscaler(name, weights, device, resolve_dtype(dtype, device))


@lru_cache(maxsize=8)
def segmenter(name: str, weights: WeightsConfig, device: torch.device) -> LoadedSegmenter:
    """The segmentation network `name`, in float32."""
    return loading.load_segmenter(name, weights, device)


@lru_cache(maxsize=8)
def translator(name: str, weights: WeightsConfig, device: torch.device) -> Translator:
    """The translator `name`, in float32."""
    return loading.load_translator(name, weights, device)


_LOADERS = (decoder, vqgan, scorer, upscaler, segmenter, translator)
_gpus_in_use: set[torch.device] = set()


def _forget_other_devices(devices: tuple[torch.device, ...]) -> None:
    """Let go of networks on GPUs that Ray gave this process before, and may give to another now."""
    gpus = {device for device in devices if device.type == "cuda"}
    if gpus and _gpus_in_use and gpus.isdisjoint(_gpus_in_use):
        for loader in _LOADERS:
            loader.cache_clear()
        release()
        _gpus_in_use.clear()
    _gpus_in_use.update(gpus)
