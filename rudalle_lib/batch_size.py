"""How many images to draw at once: what fits into free memory, by a formula.

    images = share * free bytes / bytes of an image, at most `MOST`

    bytes of an image = 2 * hidden size * bytes of a number
                          * (slots of all layers + layers * text length / images of a prompt)
                      + `WORK_NUMBERS` * (hidden size + image vocabulary)

The first product is the cache of keys and values: a row layer keeps the last `width + 1` image
tokens, a column layer all, the convolution layer about six rows, and every layer the text, which
the images of a prompt share. The second is what a step works on. For Malevich in bfloat16, 8 images
a prompt, it is 61 MB: a GPU with 5 GB left takes 64.

The network is in memory already when this is asked. If memory runs out all the same, `memory` goes
on with half as many.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from rudalle_lib.models.cell_slots import plan_slots
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.sparse_attention import layer_kind

LOGGER = logging.getLogger(__name__)

MOST = 256
"""Beyond so many images at once, the time of one hardly shrinks."""

SHARE = {"cuda": 0.8, "cpu": 0.5}
"""Of free memory; that of a CPU is other programs' too."""

WORK_NUMBERS = 64
"""Bytes that a step keeps for each number of a hidden state and of the logits."""

MEGABYTE = 1_000_000


def choose_batch_size(
    setting: int | str,
    model: Dalle,
    devices: Sequence[torch.device],
    replicas: int,
    branches: int = 1,
) -> int:
    """The batch size that is set, or, for "auto", what fits.

    Args:
        setting: a number, or "auto".
        model: the decoder, in memory.
        devices: that its layers are spread over.
        replicas: images of a prompt.
        branches: 2 with guidance, which keeps every image twice.

    Returns:
        At least 1; for "auto", whole prompts where one fits.
    """
    if isinstance(setting, int):
        return setting
    number = model.image_embeddings.weight.element_size()
    image = branches * bytes_per_image(model.config, number, replicas) / len(devices)
    free = min(free_bytes(device) for device in devices)
    images = batch_size_for(free, image, devices[0].type, replicas)
    LOGGER.info(
        "Drawing %d images at once: %.1f MB each, %.0f MB free",
        images, image / MEGABYTE, free / MEGABYTE,
    )  # fmt: skip
    return images


def batch_size_for(free: int, image: float, device_type: str, replicas: int) -> int:
    """The formula: how many images of so many bytes; whole prompts where one fits."""
    images = min(int(SHARE.get(device_type, SHARE["cpu"]) * free / image), MOST)
    return max(images - images % replicas if images >= replicas else images, 1)


def bytes_per_image(config: DalleConfig, number: int, replicas: int) -> float:
    """Bytes that an image takes while it is drawn, beside the network.

    Args:
        config: the decoder's.
        number: bytes of one number of its precision.
        replicas: images of a prompt, which share its text.
    """
    return cache_bytes_per_image(config, number, replicas) + WORK_NUMBERS * (
        config.hidden_size + config.image_vocab_size
    )


def cache_bytes_per_image(config: DalleConfig, number: int, replicas: int) -> float:
    """Bytes of the keys and values of an image, and of its share of the text's."""
    layers = range(config.num_layers)
    kinds = [layer_kind(index, config.num_layers) for index in layers]
    cpu = torch.device("cpu")
    slots = sum(plan_slots(kind, config.grid, cpu).size for kind in kinds)
    text = config.num_layers * config.text_length / replicas
    return 2 * config.hidden_size * number * (slots + text)


def free_bytes(device: torch.device) -> int:
    """Memory that new tensors on a device can have.

    Of a GPU what the driver has, and what PyTorch keeps unused; of a CPU what the system can give
    without swapping, or the rest of the container's limit.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + kept
    return int(min(_system_memory(), _container_memory()))


def _system_memory() -> int:
    try:
        report = Path("/proc/meminfo").read_text("ascii")
        return int(report.partition("MemAvailable:")[2].split()[0]) * 1024
    except (OSError, IndexError):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _container_memory(folder: Path = Path("/sys/fs/cgroup")) -> float:
    try:
        limit = (folder / "memory.max").read_text("ascii").strip()
        used = int((folder / "memory.current").read_text("ascii"))
    except (OSError, ValueError):
        return float("inf")
    return float("inf") if limit == "max" else max(int(limit) - used, 0)
