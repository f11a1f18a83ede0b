"""Score: how well every picture shows its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from prefect import task

from rudalle_lib.batches import alike
from rudalle_lib.config import ScoreConfig
from rudalle_lib.images import decode_image
from rudalle_lib.memory import in_fitting_batches
from rudalle_lib.negatives import probabilities
from rudalle_lib.record_tables import from_table, to_table
from rudalle_lib.records import PictureRecord, ScoreRecord, StageArtifact, TranslationRecord
from rudalle_lib.scoring import Scorer
from rudalle_lib.selection import rank
from rudalle_lib.stages import find_artifact, read_artifact, write_artifact
from rudalle_lib.storage import Storage
from tasks.job import Job
from tasks.loaded_models import device_slot, scorer
from tasks.options import OPTIONS, run_name
from tasks.progress import notice, reporter

STAGE = "score"


@task(name=STAGE, task_run_name=run_name(STAGE), **OPTIONS)
def score(
    section: ScoreConfig,
    job: Job,
    translated: StageArtifact,
    decoded: StageArtifact,
    fingerprint: str,
) -> StageArtifact:
    """Score every picture that there is; `ScoreRecord`s in the order of the pictures."""
    storage = Storage(job.output)
    done = find_artifact(storage, STAGE, job.shard, fingerprint, notice)
    if done is not None:
        return done
    translations = from_table(read_artifact(storage, translated), TranslationRecord)
    texts = {row.prompt_id: row.text_ru or "" for row in translations}
    rows = from_table(read_artifact(storage, decoded), PictureRecord)
    drawn = [row for row in rows if row.picture is not None]
    with device_slot(job.runtime, job.shard.index) as slot:
        loaded = scorer(section.model, job.weights, slot.device, section.dtype)
        model = Scorer(loaded.model, loaded.tokenizer, section.templates, section.batch_size)
        scores = _scores(model, drawn, texts, section, job.shard.index)
    ranks = rank([row.prompt_id for row in drawn], [cosine for cosine, _, _ in scores])
    records = [
        ScoreRecord(row.image_id, row.prompt_id, cosine, place, probability, unsafe)
        for row, (cosine, probability, unsafe), place in zip(drawn, scores, ranks, strict=True)
    ]
    table = to_table(records, ScoreRecord)
    return write_artifact(storage, STAGE, job.shard, fingerprint, table, slot.seconds, slot.use)


def _scores(
    model: Scorer,
    rows: Sequence[PictureRecord],
    texts: dict[str, str],
    section: ScoreConfig,
    shard_index: int,
) -> list[tuple[float, float | None, float | None]]:
    """Cosine and probability of each picture's prompt, and its best cosine with an unsafe text.

    Pictures are unpacked a batch at a time.
    """
    report = reporter(STAGE, shard_index)
    features = model.text_features([texts[row.prompt_id] for row in rows])  # [N, E]
    others = model.text_features(section.negative_texts) if section.negative_texts else None
    unsafe = model.text_features(section.unsafe_texts) if section.unsafe_texts else None
    scale = float(model.model.logit_scale.exp())
    scored: dict[int, tuple[float, float | None, float | None]] = {}
    batches = alike([(row.width, row.height) for row in rows], section.batch_size)
    work = partial(_image_features, model, rows)
    for batch, drawn in in_fitting_batches(batches, work, "scoring a single picture"):
        cosines = (drawn * features[list(batch)]).sum(dim=1)
        chances: Sequence[float | None] = [None] * len(batch)
        if others is not None:
            chances = probabilities(drawn, features[list(batch)], others, scale).tolist()
        dangers: Sequence[float | None] = [None] * len(batch)
        if unsafe is not None:
            dangers = (drawn @ unsafe.T).amax(dim=1).tolist()
        scored |= zip(batch, zip(cosines.tolist(), chances, dangers, strict=True), strict=True)
        report(len(scored), len(rows))
    return [scored[index] for index in range(len(rows))]


def _image_features(
    model: Scorer, rows: Sequence[PictureRecord], batch: Sequence[int]
) -> torch.Tensor:
    pictures = torch.stack([decode_image(rows[index].picture or b"") for index in batch])
    return model.image_features(pictures)  # [B, E]
