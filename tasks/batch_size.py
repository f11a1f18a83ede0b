"""Sizes that the GPUs of a run decide: of a batch of the decoder, and of a shard."""

from __future__ import annotations

from prefect import task

from rudalle_lib.config.sections import GenerateConfig
from rudalle_lib.generation.draw import drawing_batch_size
from rudalle_lib.generation.shard_size import gpu_shard_size
from tasks.runtime.device_locks import devices_for
from tasks.runtime.job import Job
from tasks.runtime.models import decoder, device_slot
from tasks.runtime.options import OPTIONS


@task(name="batch size", **OPTIONS)
def fitting_batch_size(section: GenerateConfig, job: Job) -> int:
    """How many images fit into a batch on the device of this process, beside the network.

    Args:
        section: settings of the run.
        job: any shard; it names the devices.
    """
    with device_slot(job.runtime, job.shard.index, job.runtime.split_decoder, "draw") as slot:
        loaded = decoder(section.model, job.weights, slot.devices, job.runtime.dtype)
        return drawing_batch_size(section, loaded.model, slot.devices)


@task(name="shard size", **OPTIONS)
def fitting_shard_size(section: GenerateConfig, job: Job) -> int:
    """Prompts per shard that make full batches on the GPU of this process.

    Args:
        section: settings of the run.
        job: any shard; it names the devices.
    """
    devices = devices_for(job.runtime, job.shard.index, job.runtime.split_decoder)
    return gpu_shard_size(section, job.weights, job.runtime.dtype, devices)
