"""Cut out: make the background of the kept images transparent."""

from __future__ import annotations

from collections.abc import Sequence

from prefect import task

from rudalle_lib.config.sections import CutoutConfig, ScoreConfig
from rudalle_lib.images.cutout import cut_out_rows
from rudalle_lib.images.file_threads import Pending
from rudalle_lib.schema.records import CutoutRecord, PixelsRecord, StageArtifact
from rudalle_lib.selection.choices import NO_CHOICE, Choice
from tasks.runtime.events import reporter
from tasks.runtime.job import Job
from tasks.runtime.kept_images import process_kept
from tasks.runtime.models import DeviceSlot, segmenter
from tasks.runtime.options import OPTIONS, run_name

STAGE = "cutout"


@task(name=STAGE, task_run_name=run_name(STAGE), **OPTIONS)
def cutout(
    section: CutoutConfig,
    selection: ScoreConfig,
    job: Job,
    images: StageArtifact,
    generated: StageArtifact,
    scored: StageArtifact,
    fingerprint: str,
    choice: Choice = NO_CHOICE,
) -> StageArtifact:
    """Cut out the kept images; one `CutoutRecord` per image, in the order of `images`."""

    def work(rows: Sequence[PixelsRecord], slot: DeviceSlot) -> Pending[CutoutRecord]:
        network = None
        if section.model is not None:
            network = segmenter(section.model, job.weights, slot.device).model
        return cut_out_rows(network, rows, section, reporter(STAGE, job.shard.index))

    return process_kept(
        STAGE, job, selection, images, generated, scored, fingerprint, CutoutRecord, work, choice
    )
