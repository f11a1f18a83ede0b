"""Models are loaded once, also by many threads, and each device keeps its own."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from tasks.runtime.model_cache import MODELS_PER_DEVICE, ModelCache


def slow_cache() -> ModelCache[[str, None, str], object]:
    def load(name: str, weights: None, device: str) -> object:
        time.sleep(0.02)
        return object()

    return ModelCache(load)


def test_threads_that_need_the_same_model_load_it_once() -> None:
    cache = slow_cache()
    with ThreadPoolExecutor(8) as pool:
        models = set(pool.map(lambda _: cache("vqgan", None, "cuda:0"), range(8)))
    assert len(models) == 1 and cache.loads == 1


def test_many_devices_do_not_push_each_other_out() -> None:
    cache = slow_cache()
    devices = [f"cuda:{index}" for index in range(2 * MODELS_PER_DEVICE)]
    for _ in range(2):
        for device in devices:
            cache("vqgan", None, device)
    assert cache.loads == len(cache) == len(devices)


def test_a_device_forgets_the_model_that_was_used_longest_ago() -> None:
    cache = slow_cache()
    first = cache("0", None, "cpu")
    for number in range(1, MODELS_PER_DEVICE):
        cache(str(number), None, "cpu")
    assert cache("0", None, "cpu") is first
    cache("one more", None, "cpu")
    assert cache("0", None, "cpu") is first and len(cache) == MODELS_PER_DEVICE
    loads = cache.loads
    cache("1", None, "cpu")
    assert cache.loads == loads + 1
    cache.clear()
    assert len(cache) == 0
