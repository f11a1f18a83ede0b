"""`prompts.shard_size: auto`: how many prompts a shard has, chosen when a plan is first made.

On GPUs a shard is one full batch of the decoder, or as many as make `MIN_IMAGES` images:

    shard size = images of its batches / images per prompt, at least 1

The batch is what will fit into the memory of the GPU, all of it, beside the network. That is the
same number for the same GPU, whatever runs on it at the moment; free memory is looked at when
images are drawn (`generation.batch_size`). On a CPU, whose speed hardly depends on the batch, a
shard has as many images as one of the default configuration.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rudalle_lib import registry
from rudalle_lib.config.inputs import SHARD_SIZE
from rudalle_lib.config.sections import GenerateConfig, WeightsConfig
from rudalle_lib.generation.batch_size import batch_size_for, bytes_per_image
from rudalle_lib.generation.guidance import NO_GUIDANCE
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.runtime.devices import INT8_DTYPES, compute_dtype, resolve_dtype
from rudalle_lib.weights.files import resolve_files
from rudalle_lib.weights.loading import network_config

CPU_IMAGES = 512
"""Images of a shard on a CPU: 64 prompts with 8 images each. More are lost if it is interrupted."""

MIN_IMAGES = 256
"""Images of a shard on a GPU, at least: with fewer, the work around a shard would count."""

MARGIN = 0.9
"""Share of the images that fit which a shard takes. With slightly more than fit, it would be drawn
in two batches of half the size."""


def gpu_shard_size(
    section: GenerateConfig, weights: WeightsConfig, dtype: str, devices: Sequence[torch.device]
) -> int:
    """Prompts per shard on GPUs. Reads the sizes of the network, and loads nothing.

    Args:
        section: settings of the run.
        weights: where the files of its decoder are.
        dtype: precision of the decoder.
        devices: GPUs that the layers of the decoder are spread over.

    Raises:
        WeightsError: files of the decoder are missing or describe none.
        SettingsError: the devices do not support the precision.
    """
    if isinstance(section.batch_size, int):
        return shard_size_for(section.batch_size, section.images)
    entry = registry.get(section.model, "decoder")
    config = network_config(entry, resolve_files(entry, weights), DalleConfig)
    precision = resolve_dtype(dtype, devices[0])
    element_size = compute_dtype(precision, devices[0]).itemsize
    weight_size = 1 if precision in INT8_DTYPES else element_size
    branches = 1 if section.guidance == NO_GUIDANCE else 2
    image_bytes = branches * bytes_per_image(config, element_size, section.images)
    total = min(torch.cuda.mem_get_info(device)[1] for device in devices)
    room = len(devices) * total - weight_size * count_parameters(config)
    fitting = batch_size_for(int(max(room, 0) * MARGIN), image_bytes, "cuda", section.images)
    return shard_size_for(fitting, section.images)


def shard_size_for(batch_size: int, images: int) -> int:
    """Prompts per shard: whole batches of the decoder.

    Args:
        batch_size: images that are drawn together.
        images: of each prompt.
    """
    prompts = max(batch_size // images, 1)
    batches = -(-MIN_IMAGES // (prompts * images))
    return prompts * batches


def cpu_shard_size(images: int) -> int:
    """Prompts per shard on a CPU, by the images of each."""
    return max(1, min(SHARD_SIZE, CPU_IMAGES // images))


def count_parameters(config: DalleConfig) -> int:
    """How many numbers the weights of a decoder are."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in Dalle(config).parameters())
