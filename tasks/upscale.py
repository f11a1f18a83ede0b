"""Upscale: enlarge the kept images."""

from __future__ import annotations

from collections.abc import Sequence

from prefect import task

from rudalle_lib.config.sections import ScoreConfig, UpscaleConfig
from rudalle_lib.images.file_threads import Pending
from rudalle_lib.images.upscaling import upscale_rows
from rudalle_lib.schema.records import PixelsRecord, StageArtifact
from rudalle_lib.selection.choices import NO_CHOICE, Choice
from tasks.runtime.events import reporter
from tasks.runtime.job import Job
from tasks.runtime.kept_images import process_kept
from tasks.runtime.models import DeviceSlot, upscaler
from tasks.runtime.options import OPTIONS, run_name

STAGE = "upscale"


@task(name=STAGE, task_run_name=run_name(STAGE), **OPTIONS)
def upscale(
    section: UpscaleConfig,
    selection: ScoreConfig,
    job: Job,
    decoded: StageArtifact,
    generated: StageArtifact,
    scored: StageArtifact,
    fingerprint: str,
    choice: Choice = NO_CHOICE,
) -> StageArtifact:
    """Enlarge the kept images; one `PixelsRecord` per image, in the order of `decoded`."""

    def work(rows: Sequence[PixelsRecord], slot: DeviceSlot) -> Pending[PixelsRecord]:
        loaded = upscaler(section.model or "", job.weights, slot.device, section.dtype)
        return upscale_rows(loaded.model, rows, section, reporter(STAGE, job.shard.index))

    return process_kept(
        STAGE, job, selection, decoded, generated, scored, fingerprint, PixelsRecord, work, choice
    )
