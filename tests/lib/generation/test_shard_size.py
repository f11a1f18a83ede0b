"""Automatic shards are full batches on GPUs, and those of the default configuration on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rudalle_lib import registry
from rudalle_lib.config.inputs import SHARD_SIZE, PromptsConfig
from rudalle_lib.config.sections import GenerateConfig, WeightsConfig
from rudalle_lib.generation import shard_size
from rudalle_lib.generation.batch_size import batch_size_for, bytes_per_image, even_batch_size
from rudalle_lib.generation.shard_size import (
    count_parameters,
    cpu_shard_size,
    gpu_shard_size,
    shard_size_for,
)
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.weights.files import resolve_files
from tests.support.tiny_stack import write_tiny_stack

GPUS = [torch.device("cuda", index) for index in range(2)]
MALEVICH = DalleConfig(**registry.get("malevich-v3").architecture)
WEIGHTS = WeightsConfig()


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of the GPUs, of which almost nothing is free."""
    sizes = [80 * 10**9, 80 * 10**9]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1, sizes[device.index]))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(shard_size, "resolve_files", lambda *_: {})  # published sizes suffice
    return sizes


def chosen(images: int, devices: list[torch.device] = GPUS[:1], **settings: object) -> int:
    section = GenerateConfig.model_validate(
        {"model": "malevich-v3", "batch_size": "auto", "images": images, **settings}
    )
    return gpu_shard_size(section, WEIGHTS, "bfloat16", devices)


@pytest.mark.parametrize(
    ("gigabytes", "images", "expected"),
    [
        (3, 8, 32),  # less room than one image needs: batches of one
        (8, 24, 12),  # six batches of two prompts
        (24, 24, 11),
        (80, 8, 115),
        (80, 24, 39),
        (141, 24, 71),
        (141, 1, 1210),
    ],
)
def test_a_shard_is_as_many_full_batches_as_make_256_images(
    gigabytes: int, images: int, expected: int, memory: list[int]
) -> None:
    memory[0] = gigabytes * 10**9
    assert chosen(images) == expected
    assert expected * images >= 256


@pytest.mark.parametrize(
    ("gigabytes", "images", "prompts", "batch", "with_64"),
    [
        (24, 1, 372, 186, 64),
        (24, 8, 62, 248, 256),
        (24, 24, 11, 264, 264),
        (80, 1, 676, 676, 64),
        (80, 8, 115, 920, 512),
        (80, 24, 39, 936, 768),
        (141, 1, 1210, 1210, 64),
        (141, 8, 206, 1648, 512),
        (141, 24, 71, 1704, 1536),
    ],
)
def test_the_batches_of_automatic_shards_and_of_64_prompts(
    gigabytes: int, images: int, prompts: int, batch: int, with_64: int, memory: list[int]
) -> None:
    """The table in docs/gpu.md."""
    memory[0] = gigabytes * 10**9
    assert chosen(images) == prompts
    free = 0.97 * memory[0] - 2 * count_parameters(MALEVICH)
    most = batch_size_for(int(free), bytes_per_image(MALEVICH, 2, images), "cuda", images)
    assert even_batch_size([most], prompts * images, images) == batch
    assert even_batch_size([most], 64 * images, images) == with_64
    page = (Path(__file__).resolve().parents[3] / "docs" / "gpu.md").read_text("utf-8")
    row = f"| {gigabytes} GB | {images} | {prompts:,} | {batch:,} | {with_64:,} |"
    assert row in page


@pytest.mark.parametrize("gigabytes", [8, 12, 16, 24, 40, 48, 80, 96, 141])
def test_a_shard_is_drawn_in_batches_as_large_as_fit(gigabytes: int, memory: list[int]) -> None:
    """With some memory taken by other networks, its even batches are at least 70% of the most."""
    memory[0] = gigabytes * 10**9
    images = 24 * chosen(24)
    free = memory[0] * 0.97 - 2 * count_parameters(MALEVICH)
    most = batch_size_for(int(free), bytes_per_image(MALEVICH, 2, 24), "cuda", 24)
    batch = even_batch_size([most], images, 24)
    assert batch <= most
    assert batch >= 0.7 * most or images == batch


def test_guidance_and_split_decoders_count(memory: list[int]) -> None:
    assert chosen(24, guidance=3.0) == chosen(24) // 2
    memory[1] = 40 * 10**9  # the layers are spread evenly, so the smaller one is the limit
    one = chosen(24, GPUS[1:])
    assert 2 * one <= chosen(24, GPUS) <= 2 * one + 2


def test_the_precision_decides_how_much_fits(memory: list[int]) -> None:
    section = GenerateConfig(model="malevich-v3", batch_size="auto", images=24)
    dtypes = ("float32", "bfloat16", "int8")
    assert [gpu_shard_size(section, WEIGHTS, one, GPUS[:1]) for one in dtypes] == [19, 39, 40]


def test_a_batch_size_that_is_a_number_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(shard_size, "resolve_files")
    section = GenerateConfig(batch_size=512, images=8)
    assert gpu_shard_size(section, WEIGHTS, "float32", GPUS[:1]) == 64


@pytest.mark.parametrize(
    ("batch", "images", "expected"),
    [(1, 1, 256), (1, 1000, 1), (7, 8, 32), (64, 8, 32), (300, 24, 12), (2048, 1, 2048)],
)
def test_shards_hold_whole_batches(batch: int, images: int, expected: int) -> None:
    assert shard_size_for(batch, images) == expected


def test_a_cpu_has_the_shards_of_the_default_configuration() -> None:
    default = GenerateConfig().images
    assert cpu_shard_size(default) == SHARD_SIZE == PromptsConfig().shard_size == 64
    assert [cpu_shard_size(images) for images in (1, 24, 512, 1000)] == [64, 21, 1, 1]


def test_sizes_of_the_network_are_read_and_not_its_weights(tmp_path: Path) -> None:
    model = Dalle(DalleConfig(2, 32, 2, 60, 20, 32, 4, 4))
    assert count_parameters(model.config) == sum(one.numel() for one in model.parameters())
    weights = WeightsConfig(folder=str(write_tiny_stack(tmp_path)), offline=True)
    assert resolve_files(registry.get("demo-dalle"), weights)["config"].exists()
