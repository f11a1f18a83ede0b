"""The automatic batch size of the decoder: as many images as fit into free memory.

    batch size = share * free bytes / bytes per image, at most `MAX_BATCH_SIZE` of the device

    bytes per image = 2 * hidden size * bytes per number
                          * (slots of all layers + layers * text length / images per prompt)
                      + `WORK_BYTES` * (hidden size + image vocabulary)

The first term is the cache of keys and values. A row layer keeps the last `width + 1` image tokens,
a column layer all of them, and the convolution layer about six rows. Every layer also keeps the
text, which the images of a prompt share. The second term is the working memory of a step. Malevich
in bfloat16 with 8 images per prompt needs 61 MB per image: 64 images fit into 5 GB of free memory.

The network is already in memory when this is computed. If memory runs out nevertheless,
`runtime.memory` continues with half the batch size.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import torch

from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.decoding.cache_slots import plan_slots
from rudalle_lib.models.sparse_attention import layer_kind
from rudalle_lib.runtime.memory import free_gpu_bytes

LOGGER = logging.getLogger(__name__)

MAX_BATCH_SIZE = {"cpu": 256, "cuda": 2048}
"""Images per batch. On a CPU larger batches hardly reduce the time per image. On a GPU its memory
is the limit: with Malevich in bfloat16, 80 GB hold about 1,000 images."""

SHARE = {"cuda": 0.8, "cpu": 0.5}
"""Share of the free memory that is used; other programs need memory of the CPU too."""

WORK_BYTES = 64
"""Working memory of a step per number of a hidden state and of the logits."""

MEGABYTE = 1_000_000

_chosen: WeakKeyDictionary[Dalle, dict[Hashable, int]] = WeakKeyDictionary()
"""Automatic batch sizes on GPUs. They are chosen once: the steps that have been captured for the
first batch are kept for later ones, and their memory is not free any more."""


def choose_batch_size(
    setting: int | str,
    model: Dalle,
    devices: Sequence[torch.device],
    replicas: int,
    branches: int = 1,
) -> int:
    """The configured batch size, or for "auto" the one that fits into free memory.

    Args:
        setting: a number, or "auto".
        model: the decoder, in memory.
        devices: the devices that its layers are spread over.
        replicas: images per prompt.
        branches: 2 if any image has guidance, which has it twice in the batch, otherwise 1.

    Returns:
        At least 1; for "auto", a multiple of `replicas` if that many images fit.
    """
    if isinstance(setting, int):
        return setting
    key = (tuple(devices), replicas, branches)
    remembered = _chosen.setdefault(model, {}) if devices[0].type == "cuda" else {}
    if key not in remembered:
        remembered[key] = _fitting_batch_size(model, devices, replicas, branches)
    return remembered[key]


def _fitting_batch_size(
    model: Dalle, devices: Sequence[torch.device], replicas: int, branches: int
) -> int:
    element_size = model.image_embeddings.weight.element_size()
    image_bytes = branches * bytes_per_image(model.config, element_size, replicas) / len(devices)
    free = min(free_bytes(device) for device in devices)
    images = batch_size_for(free, image_bytes, devices[0].type, replicas)
    LOGGER.info(
        "Drawing %d images per batch: %.1f MB each, %.0f MB free",
        images, image_bytes / MEGABYTE, free / MEGABYTE,
    )  # fmt: skip
    return images


def batch_size_for(free: int, image_bytes: float, device_type: str, replicas: int) -> int:
    """The number of images that fit into free memory.

    Args:
        free: free memory in bytes.
        image_bytes: memory per image in bytes.
        device_type: "cpu" or "cuda".
        replicas: images per prompt.

    Returns:
        At least 1; a multiple of `replicas` if that many images fit.
    """
    kind = device_type if device_type in SHARE else "cpu"
    images = min(int(SHARE[kind] * free / image_bytes), MAX_BATCH_SIZE[kind])
    return max(images - images % replicas if images >= replicas else images, 1)


def even_batch_size(fitting: Sequence[int], images: int, replicas: int) -> int:
    """The batch size of a whole run on GPUs, where all batches are filled up to the same size.

    It is one number for all devices, so that no image depends on which of them drew it. The images
    of a shard are divided evenly, because rows that are only filled up cost as much as images.

    Args:
        fitting: how many images fit onto each device, at least one number.
        images: of the largest shard.
        replicas: images per prompt.

    Returns:
        At least 1; a multiple of `replicas` if that many images fit everywhere.
    """
    most = min(fitting)
    batches = -(-images // most)
    even = -(-images // batches)
    whole = -(-even // replicas) * replicas
    return whole if whole <= most else even


def bytes_per_image(config: DalleConfig, element_size: int, replicas: int) -> float:
    """Memory per image while it is drawn, in addition to the network, in bytes.

    Args:
        config: the architecture of the decoder.
        element_size: bytes per number of its dtype.
        replicas: images per prompt, which share its text.
    """
    return cache_bytes_per_image(config, element_size, replicas) + WORK_BYTES * (
        config.hidden_size + config.image_vocab_size
    )


def cache_bytes_per_image(config: DalleConfig, element_size: int, replicas: int) -> float:
    """Keys and values of an image and its share of those of the text, in bytes."""
    layers = range(config.num_layers)
    kinds = [layer_kind(index, config.num_layers) for index in layers]
    cpu = torch.device("cpu")
    slots = sum(plan_slots(kind, config.grid, cpu).size for kind in kinds)
    text = config.num_layers * config.text_length / replicas
    return 2 * config.hidden_size * element_size * (slots + text)


def free_bytes(device: torch.device) -> int:
    """Free memory of a device for new tensors, in bytes.

    On a GPU, the free memory of the driver and what PyTorch has cached. On a CPU, the available
    memory of the system, or what the limit of the container leaves if that is less.
    """
    if device.type == "cuda":
        return free_gpu_bytes(device)
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
