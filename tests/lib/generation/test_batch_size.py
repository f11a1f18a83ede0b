"""The automatic batch size follows from free memory, and the formula counts all memory in use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rudalle_lib import registry
from rudalle_lib.generation import batch_size
from rudalle_lib.generation.batch_size import (
    batch_size_for,
    bytes_per_image,
    cache_bytes_per_image,
    choose_batch_size,
    even_batch_size,
    free_bytes,
)
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.decoding.cached_decoder import CachedDecoder
from rudalle_lib.models.decoding.native_cache import NativeLayerCache
from rudalle_lib.models.decoding.torch_cache import TorchLayerCache

CPU = torch.device("cpu")
MALEVICH = DalleConfig(**registry.get("malevich-v3").architecture)
SMALL = DalleConfig(6, 24, 3, 30, 6, 16, 12, 13, version="v2")


@pytest.mark.parametrize("replicas", [1, 3])
@torch.inference_mode()
def test_the_cache_has_the_size_of_the_formula(replicas: int) -> None:
    text = torch.ones(2, SMALL.text_length, dtype=torch.int64)
    decoder = CachedDecoder(Dalle(SMALL), text, torch.arange(2).repeat_interleave(replicas))
    decoder.prefill()
    held = 0
    for layer in decoder._layers:
        assert isinstance(layer, NativeLayerCache | TorchLayerCache)
        parts = (layer.key, layer.value, layer.text_key, layer.text_value)
        held += sum(part.numel() * part.element_size() for part in parts)
    assert held == 2 * replicas * cache_bytes_per_image(SMALL, 4, replicas)


def test_malevich_needs_60_mb_per_image_and_would_need_226_without_sparse_caches() -> None:
    assert cache_bytes_per_image(MALEVICH, 2, 8) < 62e6
    dense = 2 * 24 * 2048 * 2 * (128 + 1024)
    assert round(dense / 1e6) == 226
    assert 59e6 < bytes_per_image(MALEVICH, 2, 8) < 63e6


@pytest.mark.parametrize(
    ("free", "device", "replicas", "expected"),
    [
        (0, "cuda", 8, 1),  # always at least one; memory may run out
        (100, "cuda", 8, 8),
        (100, "cpu", 8, 5),  # fewer images than a prompt has
        (1000, "cuda", 24, 72),  # 80 fit: three whole prompts
        (10**9, "cuda", 24, 2040),
        (10**4, "cuda", 8, 800),  # memory is the limit of a GPU
        (10**9, "cpu", 1, 256),
    ],
)
def test_a_share_of_free_memory_is_filled_with_whole_prompts(
    free: int, device: str, replicas: int, expected: int
) -> None:
    assert batch_size_for(free, 10.0, device, replicas) == expected


def test_a_number_is_used_unchanged_and_auto_depends_on_free_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Dalle(SMALL)
    assert choose_batch_size(7, model, [CPU], 8) == 7
    assert free_bytes(CPU) > 10_000_000
    monkeypatch.setattr(batch_size, "free_bytes", lambda _: 40 * bytes_per_image(SMALL, 4, 8))
    assert choose_batch_size("auto", model, [CPU], 8) == 16
    assert choose_batch_size("auto", model, [CPU], 8, branches=2) == 8


def test_the_automatic_size_on_a_gpu_is_chosen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a captured step holds after the first batch is not free, but is used again."""
    model, gpu, free = Dalle(SMALL), torch.device("cuda", 0), iter([40, 8, 40])
    monkeypatch.setattr(
        batch_size, "free_bytes", lambda _: next(free) * bytes_per_image(SMALL, 4, 8)
    )
    assert [choose_batch_size("auto", model, [gpu], 8) for _ in range(2)] == [32, 32]
    assert choose_batch_size("auto", model, [CPU], 8) == 4, "a CPU is asked each time"
    assert choose_batch_size("auto", Dalle(SMALL), [gpu], 8) == 32, "another network"


@pytest.mark.parametrize(
    ("fitting", "images", "replicas", "expected"),
    [
        ([2040, 288], 2880, 24, 288),  # the smallest GPU decides
        ([1008], 384, 24, 384),  # one shard: rows without an image would cost as much
        ([504], 600, 24, 312),  # two equal batches instead of 504 and 96
        ([504], 504, 24, 504),
        ([5, 7], 16, 8, 4),  # fewer than one prompt fits: two batches would be 8, four are 4
        ([1], 9, 3, 1),
        ([100], 7, 1, 7),
    ],
)
def test_the_batches_of_a_run_fit_everywhere_and_are_even(
    fitting: list[int], images: int, replicas: int, expected: int
) -> None:
    assert even_batch_size(fitting, images, replicas) == expected


def test_the_memory_limit_of_a_container_counts(tmp_path: Path) -> None:
    assert batch_size._container_memory(tmp_path) == float("inf")
    (tmp_path / "memory.current").write_text("300\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert batch_size._container_memory(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("1000\n")
    assert batch_size._container_memory(tmp_path) == 700
