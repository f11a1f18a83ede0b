"""Upscale: the chosen pictures, enlarged."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from prefect import task

from rudalle_lib.batches import alike
from rudalle_lib.config import ScoreConfig, UpscaleConfig
from rudalle_lib.images import decode_image, encode_image
from rudalle_lib.memory import in_fitting_batches
from rudalle_lib.models.rrdbnet import RrdbNet
from rudalle_lib.records import PictureRecord, StageArtifact
from rudalle_lib.upscaling import upscale as enlarge
from tasks.job import Job
from tasks.kept_pictures import make_missing
from tasks.loaded_models import DeviceSlot, device_slot, upscaler
from tasks.options import OPTIONS, run_name
from tasks.progress import reporter

STAGE = "upscale"


@task(name=STAGE, task_run_name=run_name(STAGE), **OPTIONS)
def upscale(
    section: UpscaleConfig,
    selection: ScoreConfig,
    job: Job,
    decoded: StageArtifact,
    scored: StageArtifact,
    fingerprint: str,
) -> StageArtifact:
    """Enlarge the pictures that are kept; `PictureRecord`s in the order of the decoded ones."""

    def work(rows: Sequence[PictureRecord]) -> tuple[list[PictureRecord], DeviceSlot]:
        with device_slot(job.runtime, job.shard.index) as slot:
            enlarged = []
            if rows:
                loaded = upscaler(section.model or "", job.weights, slot.device, section.dtype)
                enlarged = _enlarge(loaded.model, rows, section, job.shard.index)
        return enlarged, slot

    return make_missing(STAGE, job, selection, decoded, scored, fingerprint, PictureRecord, work)


def _enlarge(
    model: RrdbNet, rows: Sequence[PictureRecord], section: UpscaleConfig, shard_index: int
) -> list[PictureRecord]:
    report = reporter(STAGE, shard_index)
    batches = alike([(row.width, row.height) for row in rows], section.batch_size)
    work = partial(_enlarge_batch, model, rows, section)
    enlarged: list[PictureRecord] = []
    for _, pictures in in_fitting_batches(batches, work, "enlarging a single picture"):
        enlarged += pictures
        report(len(enlarged), len(rows))
    return enlarged


def _enlarge_batch(
    model: RrdbNet, rows: Sequence[PictureRecord], section: UpscaleConfig, batch: Sequence[int]
) -> list[PictureRecord]:
    chosen = [rows[index] for index in batch]
    pictures = torch.stack([decode_image(row.picture or b"") for row in chosen])
    device = model.conv_first.weight.device
    large = enlarge(model, pictures.to(device), section.batch_size, section.tile).cpu()
    height, width = large.shape[2:]
    return [
        PictureRecord(row.image_id, row.prompt_id, width, height, encode_image(picture))
        for row, picture in zip(chosen, large, strict=True)
    ]
