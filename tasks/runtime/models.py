"""The models of this process: each is loaded once, and tasks take turns on a device.

A GPU has two queues: one task draws while another one decodes, scores or enlarges, each on a stream
of its own. A CPU has one, because every task uses all cores.

This is the only module with global state, because a network of gigabytes has to outlive the task
that loaded it. Everything in it can be loaded again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache

import torch

from rudalle_lib.config.runtime import RuntimeConfig
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.runtime.devices import release_threads, resolve_dtype, set_threads
from rudalle_lib.runtime.memory import (
    make_room_for_images,
    translate_out_of_memory,
)
from rudalle_lib.schema.records import NO_DEVICE, DeviceUse
from rudalle_lib.text.translation import Translator
from rudalle_lib.weights import loading
from rudalle_lib.weights.loading import (
    LoadedDecoder,
    LoadedScorer,
    LoadedSegmenter,
    LoadedUpscaler,
    LoadedVqGan,
)
from rudalle_lib.weights.second_scorer import LoadedSecond, load_second_scorer
from tasks.runtime.device_locks import (
    Queue,
    device_id,
    devices_for,
    limited_across_runs,
    queue_lock,
)
from tasks.runtime.model_cache import ModelCache
from tasks.runtime.stopping import stop_if_requested


@dataclass
class DeviceSlot:
    """Devices that one task holds exclusively.

    Attributes:
        devices: the devices, at least one unless the task needs no network.
        seconds: how long they were held; set when they are released.
        use: how long the task waited for them, and when it released them; set at the same time.
    """

    devices: tuple[torch.device, ...]
    seconds: float = 0.0
    use: DeviceUse = NO_DEVICE

    @property
    def device(self) -> torch.device:
        """The first device, for networks that are not spread over several."""
        return self.devices[0]


@contextmanager
def device_slot(
    runtime: RuntimeConfig, shard_index: int, all_devices: bool = False, queue: Queue = "images"
) -> Iterator[DeviceSlot]:
    """Wait for the device of a shard and hold one of its queues.

    Args:
        runtime: names the devices.
        shard_index: of the shard; the lowest index goes first.
        all_devices: hold all devices, for a network that is spread over them.
        queue: of the device; a CPU has only one.

    Raises:
        SettingsError: a device that this machine does not have.
        OutOfMemoryError: memory ran out while the slot was held.
        StoppedError: the run must stop.
    """
    slot = DeviceSlot(devices_for(runtime, shard_index, all_devices))
    requested = time.perf_counter()
    with ExitStack() as held:
        for device in slot.devices:  # always in this order: no deadlock
            held.enter_context(queue_lock(device, queue).hold(shard_index))
        if runtime.limit_devices and runtime.runner == "local":
            held.enter_context(limited_across_runs(slot.devices, queue))
        stop_if_requested()
        set_threads(runtime.threads)
        if queue == "images":
            make_room_for_images(slot.devices[0])
        started = time.perf_counter()
        with translate_out_of_memory("the network of this stage and its input"):
            try:
                with on_streams(slot.devices, queue):
                    yield slot
            finally:
                release_threads()
        slot.seconds = time.perf_counter() - started
        until = datetime.now(UTC).isoformat(timespec="milliseconds")
        ids = " ".join(map(device_id, slot.devices))
        waited = round(started - requested, 3)
        slot.use = DeviceUse(waited, len(slot.devices), until, device_ids=ids)


def device_slot_if(
    needed: bool, runtime: RuntimeConfig, shard_index: int
) -> AbstractContextManager[DeviceSlot]:
    """As `device_slot`, for a task that may have nothing to compute: then it holds no device."""
    return device_slot(runtime, shard_index) if needed else nullcontext(DeviceSlot(()))


@contextmanager
def on_streams(devices: Sequence[torch.device], queue: Queue) -> Iterator[None]:
    """Compute on a queue's streams of some GPUs, the first of them being the current device.

    At the end everything is computed, so that another stream may use what was loaded.
    """
    streams = [_stream(device, queue) for device in devices if device.type == "cuda"]
    with ExitStack() as entered:
        for stream in reversed(streams):
            entered.enter_context(torch.cuda.stream(stream))
        yield
        for stream in streams:
            stream.synchronize()


@cache
def _stream(device: torch.device, queue: Queue) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@ModelCache
def decoder(
    name: str, weights: WeightsConfig, devices: tuple[torch.device, ...], dtype: str
) -> LoadedDecoder:
    """A decoder in the precision of the run, its layers spread over the devices."""
    return loading.load_decoder(name, weights, devices, resolve_dtype(dtype, devices[0]))


@ModelCache
def vqgan(name: str, weights: WeightsConfig, device: torch.device, dtype: str) -> LoadedVqGan:
    """A VQ-GAN; `dtype` is the precision of its decoder."""
    return loading.load_vqgan(name, weights, device, resolve_dtype(dtype, device))


@ModelCache
def scorer(name: str, weights: WeightsConfig, device: torch.device, dtype: str) -> LoadedScorer:
    """A ruCLIP."""
    return loading.load_scorer(name, weights, device, resolve_dtype(dtype, device))


@ModelCache
def second_scorer(
    name: str, weights: WeightsConfig, device: torch.device, dtype: str
) -> LoadedSecond:
    """The second scorer: a ruCLIP, or a CLIP of open_clip."""
    return load_second_scorer(name, weights, device, resolve_dtype(dtype, device))


@ModelCache
def upscaler(name: str, weights: WeightsConfig, device: torch.device, dtype: str) -> LoadedUpscaler:
    """A super-resolution network."""
    return loading.load_upscaler(name, weights, device, resolve_dtype(dtype, device))


@ModelCache
def segmenter(name: str, weights: WeightsConfig, device: torch.device) -> LoadedSegmenter:
    """A segmentation network, in float32."""
    return loading.load_segmenter(name, weights, device)


@ModelCache
def translator(name: str, weights: WeightsConfig, device: torch.device) -> Translator:
    """A translator, in float32."""
    return loading.load_translator(name, weights, device)


_LOADERS = (decoder, vqgan, scorer, second_scorer, upscaler, segmenter, translator)
