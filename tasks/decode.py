"""Decode: image tokens become pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from prefect import task

from rudalle_lib.batches import alike
from rudalle_lib.config import DecodeConfig
from rudalle_lib.errors import SettingsError
from rudalle_lib.images import encode_image, to_uint8
from rudalle_lib.memory import in_fitting_batches
from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.record_tables import from_table, to_table
from rudalle_lib.records import PictureRecord, StageArtifact, TokensRecord
from rudalle_lib.stages import find_artifact, read_artifact, write_artifact
from rudalle_lib.storage import Storage
from tasks.job import Job
from tasks.loaded_models import device_slot, vqgan
from tasks.options import OPTIONS, run_name
from tasks.progress import notice, reporter

STAGE = "decode"


@task(name=STAGE, task_run_name=run_name(STAGE), **OPTIONS)
def decode(
    section: DecodeConfig,
    job: Job,
    generated: StageArtifact,
    fingerprint: str,
) -> StageArtifact:
    """Decode every candidate, sizes apart; `PictureRecord`s in the order of their tokens.

    A picture whose pixels are not finite stays empty, and becomes a reject.
    """
    storage = Storage(job.output)
    done = find_artifact(storage, STAGE, job.shard, fingerprint, notice)
    if done is not None:
        return done
    rows = from_table(read_artifact(storage, generated), TokensRecord)
    report = reporter(STAGE, job.shard.index)
    records: dict[int, PictureRecord] = {}
    with device_slot(job.runtime, job.shard.index) as slot:
        model = vqgan(section.model, job.weights, slot.device, section.dtype).model
        batches = alike([(row.rows, row.columns) for row in rows], section.batch_size)
        work = partial(_decode_batch, model, rows, slot.device)
        for batch, pictures in in_fitting_batches(batches, work, "decoding a single picture"):
            records |= zip(batch, pictures, strict=True)
            report(len(records), len(rows))
    table = to_table([records[index] for index in range(len(rows))], PictureRecord)
    return write_artifact(storage, STAGE, job.shard, fingerprint, table, slot.seconds, slot.use)


def _decode_batch(
    model: VqGan, every: Sequence[TokensRecord], device: torch.device, batch: Sequence[int]
) -> list[PictureRecord]:
    rows = [every[index] for index in batch]
    tokens = torch.tensor([row.tokens for row in rows], device=device)  # [B, h * w]
    _check_codes(tokens, model.config.n_embed)
    floats = model.decode(tokens.view(-1, rows[0].rows, rows[0].columns))  # [B, 3, H, W]
    finite = floats.isfinite().flatten(1).all(dim=1).tolist()
    pictures = to_uint8(floats.nan_to_num(), -1.0, 1.0).cpu()
    height, width = pictures.shape[2:]
    return [
        PictureRecord(
            row.image_id, row.prompt_id, width, height, encode_image(picture) if good else None
        )
        for row, picture, good in zip(rows, pictures, finite, strict=True)
    ]


def _check_codes(tokens: torch.Tensor, codes: int) -> None:
    if int(tokens.max()) >= codes:
        raise SettingsError(
            f"decode.model does not belong to generate.model: expected tokens below {codes:,}, "
            f"found {int(tokens.max()):,}; choose the VQ-GAN that the decoder was trained with"
        )
