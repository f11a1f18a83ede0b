"""The batch size follows free memory by the formula, and the formula counts what there is."""

from pathlib import Path

import pytest
import torch

from rudalle_lib import batch_size, registry
from rudalle_lib.batch_size import (
    batch_size_for,
    bytes_per_image,
    cache_bytes_per_image,
    choose_batch_size,
    free_bytes,
)
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.kv_cache import CachedDecoder

CPU = torch.device("cpu")
MALEVICH = DalleConfig(**registry.get("malevich-v3").architecture)
SMALL = DalleConfig(6, 24, 3, 30, 6, 16, 12, 13, version="v2")


@pytest.mark.parametrize("replicas", [1, 3])
@torch.inference_mode()
def test_the_cache_takes_what_the_formula_says(replicas: int) -> None:
    text = torch.ones(2, SMALL.text_length, dtype=torch.int64)
    decoder = CachedDecoder(Dalle(SMALL), text, torch.arange(2).repeat_interleave(replicas))
    decoder.prefill()
    held = sum(
        part.numel() * part.element_size()
        for layer in decoder._layers
        for part in (layer.key, layer.value, layer.text_key, layer.text_value)
    )
    assert held == 2 * replicas * cache_bytes_per_image(SMALL, 4, replicas)


def test_malevich_takes_60_megabytes_an_image_and_would_take_226_without_sparse_caches() -> None:
    assert cache_bytes_per_image(MALEVICH, 2, 8) < 62e6
    dense = 2 * 24 * 2048 * 2 * (128 + 1024)
    assert round(dense / 1e6) == 226
    assert 59e6 < bytes_per_image(MALEVICH, 2, 8) < 63e6


@pytest.mark.parametrize(
    ("free", "device", "replicas", "expected"),
    [
        (0, "cuda", 8, 1),  # and then it is seen whether memory runs out
        (100, "cuda", 8, 8),
        (100, "cpu", 8, 5),  # less than a prompt
        (1000, "cuda", 24, 72),  # whole prompts of the 80 that fit
        (10**9, "cuda", 24, 240),
        (10**9, "cpu", 1, 256),
    ],
)
def test_whole_prompts_of_a_share_of_what_is_free(
    free: int, device: str, replicas: int, expected: int
) -> None:
    assert batch_size_for(free, 10.0, device, replicas) == expected


def test_a_number_is_taken_as_it_is_and_auto_by_free_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Dalle(SMALL)
    assert choose_batch_size(7, model, [CPU], 8) == 7
    assert free_bytes(CPU) > 10_000_000
    monkeypatch.setattr(batch_size, "free_bytes", lambda _: 40 * bytes_per_image(SMALL, 4, 8))
    assert choose_batch_size("auto", model, [CPU], 8) == 16
    assert choose_batch_size("auto", model, [CPU], 8, branches=2) == 8


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    assert batch_size._container_memory(tmp_path) == float("inf")
    (tmp_path / "memory.current").write_text("300\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert batch_size._container_memory(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("1000\n")
    assert batch_size._container_memory(tmp_path) == 700
