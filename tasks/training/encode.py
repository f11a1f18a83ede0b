"""Encode: turn the images and captions of datasets into what a network learns from."""

from __future__ import annotations

from prefect import task
from prefect.logging import get_run_logger

from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.humanize import counted, reasons
from rudalle_lib.runtime.devices import resolve_devices, set_threads
from rudalle_lib.storage.storage import Storage
from rudalle_lib.training.data.encode import Progress, Share, encode_data
from rudalle_lib.training.data.manifest import EncodedData
from tasks.runtime.events import notice
from tasks.runtime.options import OPTIONS
from tasks.runtime.stopping import stop_if_requested
from tasks.training.events import Encoded, emit


@task(name="encode", task_run_name="encode {part}", **OPTIONS)
def encode(
    config: FineTuneConfig, part: str, device: int = 0, of: int | None = None, term: int = 0
) -> EncodedData:
    """Encode the shards that are not encoded yet, or those of one of several devices.

    Args:
        config: the fine-tuning.
        part: what the name of the task says.
        device: number of the device.
        of: number of devices that share the shards; None encodes all, and writes the manifest.
        term: of the lease that is held.
    """
    logger, shards = get_run_logger(), 0

    def show(progress: Progress) -> None:
        nonlocal shards
        stop_if_requested()
        emit(Encoded(progress.images, progress.rejects, progress.shards, progress.reused))
        if progress.shards > shards:
            shards = progress.shards
            logger.info(
                "%s, %s, %s rejected", counted(shards, "shard"),
                counted(progress.images, "image"), f"{progress.rejects:,}",
            )  # fmt: skip

    set_threads(config.runtime.threads)
    data = encode_data(
        config,
        Storage(config.output),
        resolve_devices(config.runtime.devices)[device],
        on_progress=show,
        notice=notice,
        share=None if of is None else Share(device, of),
        term=term,
    )
    rejected = f"; rejected: {reasons(data.rejected)}" if data.rejected else ""
    logger.info("%s to learn from%s", counted(data.rows, "image"), rejected)
    return data
