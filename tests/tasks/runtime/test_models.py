"""Models are loaded once, and a task holds its device until its work ends or fails."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from rudalle_lib.config.runtime import RuntimeConfig
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.errors import OutOfMemoryError, StoppedError
from rudalle_lib.schema.records import NO_DEVICE
from tasks.runtime import models
from tasks.runtime.device_locks import Queue, device_id
from tasks.runtime.models import device_slot
from tasks.runtime.stopping import stop_requested

CPU = torch.device("cpu")
RUNTIME = RuntimeConfig(devices="cpu", limit_devices=False)


def cuda(*indices: int) -> tuple[torch.device, ...]:
    return tuple(torch.device("cuda", index) for index in indices)


def test_a_slot_records_how_long_it_was_held_and_when_it_was_released() -> None:
    before = datetime.now(UTC)
    with device_slot(RUNTIME, 0) as slot:
        assert slot.device == CPU and slot.use == NO_DEVICE
        time.sleep(0.05)
    assert 0.05 <= slot.seconds < 5
    assert slot.use.devices == 1 and 0 <= slot.use.waited < 5
    assert slot.use.device_ids == device_id(CPU) != device_id(torch.device("cuda", 0))
    released = datetime.fromisoformat(slot.use.until)
    assert 0.04 < (released - before).total_seconds() < 5


def test_a_second_task_waits_for_the_device_and_records_it() -> None:
    def hold() -> models.DeviceSlot:
        with device_slot(RUNTIME, 1) as slot:
            return slot

    with ThreadPoolExecutor(1) as pool:
        with device_slot(RUNTIME, 0):
            waiting = pool.submit(hold)
            time.sleep(0.1)
            assert not waiting.done()
        assert waiting.result(timeout=5).use.waited >= 0.05


def test_a_gpu_draws_one_shard_while_another_one_is_scored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "devices_for", lambda *_: cuda(0))
    monkeypatch.setattr(models, "on_streams", lambda *_: nullcontext())
    monkeypatch.setattr(models, "make_room_for_images", lambda _: None)

    def hold(queue: Queue) -> float:
        with device_slot(RUNTIME, 1, queue=queue) as slot:
            pass
        return slot.use.waited

    with ThreadPoolExecutor(2) as pool:
        with device_slot(RUNTIME, 0, queue="draw"):
            drawing = pool.submit(hold, "draw")
            assert pool.submit(hold, "images").result(timeout=5) < 1.0
            time.sleep(0.1)
            assert not drawing.done()
        drawing.result(timeout=5)


def test_a_device_is_released_by_an_error_and_out_of_memory_is_explained() -> None:
    sentence = "not enough memory for the network of this stage and its input"
    with pytest.raises(OutOfMemoryError, match=sentence), device_slot(RUNTIME, 0):
        raise MemoryError
    with device_slot(RUNTIME, 0):
        pass


def test_no_work_starts_after_the_run_was_stopped() -> None:
    event = threading.Event()
    event.set()
    token = stop_requested.set(event)
    try:
        with pytest.raises(StoppedError), device_slot(RUNTIME, 0):
            raise AssertionError("work was started")
    finally:
        stop_requested.reset(token)


def test_the_openmp_threads_of_a_task_end_with_it() -> None:
    """Otherwise each thread of the runner would keep a pool, and the pools slow each other down."""

    def work() -> tuple[int, int]:
        with device_slot(RuntimeConfig(devices="cpu", threads=2, limit_devices=False), 0):
            torch.randn(4_000_000).sin_()
            during = len(os.listdir("/proc/self/task"))
        return during, len(os.listdir("/proc/self/task"))

    before = torch.get_num_threads()
    with ThreadPoolExecutor(1) as pool:
        during, after = pool.submit(work).result()
    torch.set_num_threads(before)
    assert after == during - 1


def test_a_model_is_loaded_once_per_device_and_precision(tiny_stack: Path) -> None:
    weights = WeightsConfig(folder=str(tiny_stack), offline=True)
    decoder = models.decoder("demo-dalle", weights, (CPU,), "float32")
    assert models.decoder("demo-dalle", weights, (CPU,), "float32") is decoder
    assert decoder.model.config.num_layers == 2, "the tiny decoder"
    half = models.vqgan("demo-vqgan", weights, CPU, "bfloat16")
    assert half is not models.vqgan("demo-vqgan", weights, CPU, "float32")
    scorer = models.scorer("demo-ruclip", weights, CPU, "float32")
    assert scorer.model.logit_scale.dtype == torch.float32
    assert models.upscaler("demo-realesrgan-x2", weights, CPU, "float32").model.config.scale == 2
    translator = models.translator("demo-marian", weights, CPU)
    assert models.translator("demo-marian", weights, CPU) is translator
