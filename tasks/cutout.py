"""Cut out: the chosen pictures, their ground made transparent."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from prefect import task

from rudalle_lib.batches import alike
from rudalle_lib.config import ScoreConfig
from rudalle_lib.config_cutout import CutoutConfig
from rudalle_lib.cutout import cut_out
from rudalle_lib.images import decode_image, encode_image
from rudalle_lib.memory import in_fitting_batches
from rudalle_lib.models.efficient_unet import EfficientUnet
from rudalle_lib.records import CutoutRecord, PictureRecord, StageArtifact
from tasks.job import Job
from tasks.kept_pictures import make_missing
from tasks.loaded_models import DeviceSlot, device_slot, segmenter
from tasks.options import OPTIONS, run_name
from tasks.progress import reporter

STAGE = "cutout"


@task(name=STAGE, task_run_name=run_name(STAGE), **OPTIONS)
def cutout(
    section: CutoutConfig,
    selection: ScoreConfig,
    job: Job,
    pictures: StageArtifact,
    scored: StageArtifact,
    fingerprint: str,
) -> StageArtifact:
    """Cut out the pictures that are kept; `CutoutRecord`s in the order of `pictures`."""

    def work(rows: Sequence[PictureRecord]) -> tuple[list[CutoutRecord], DeviceSlot]:
        with device_slot(job.runtime, job.shard.index) as slot:
            model = None
            if section.model is not None and rows:
                model = segmenter(section.model, job.weights, slot.device).model
            made = _cut_out(model, rows, section, job.shard.index)
        return made, slot

    return make_missing(STAGE, job, selection, pictures, scored, fingerprint, CutoutRecord, work)


def _cut_out(
    model: EfficientUnet | None,
    rows: Sequence[PictureRecord],
    section: CutoutConfig,
    shard_index: int,
) -> list[CutoutRecord]:
    report = reporter(STAGE, shard_index)
    batches = alike([(row.width, row.height) for row in rows], section.batch_size)
    work = partial(_cut_out_batch, model, rows, section)
    made: list[CutoutRecord] = []
    for _, records in in_fitting_batches(batches, work, "cutting out a single picture"):
        made += records
        report(len(made), len(rows))
    return made


def _cut_out_batch(
    model: EfficientUnet | None,
    rows: Sequence[PictureRecord],
    section: CutoutConfig,
    batch: Sequence[int],
) -> list[CutoutRecord]:
    chosen = [rows[index] for index in batch]
    pictures = torch.stack([decode_image(row.picture or b"") for row in chosen])
    return [
        CutoutRecord(
            row.image_id,
            row.prompt_id,
            row.width,
            row.height,
            encode_image(torch.cat((picture, cut.alpha[None]))),
            cut.way,
        )
        for row, picture, cut in zip(
            chosen, pictures, cut_out(pictures, model, section.min_confidence), strict=True
        )
    ]
