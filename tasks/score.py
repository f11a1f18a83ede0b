"""Score: rate how well each image shows its prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from prefect import task

from rudalle_lib.config.sections import ScoreConfig
from rudalle_lib.images.measures import Second, compare_translations
from rudalle_lib.images.scoring import Scorer, score_rows
from rudalle_lib.images.selection import rank_again
from rudalle_lib.pipeline.artifacts import find_artifact, read_artifact, write_artifact
from rudalle_lib.pipeline.reuse import find_made
from rudalle_lib.runtime.batching import OnProgress
from rudalle_lib.schema.arrow import from_table, to_table
from rudalle_lib.schema.records import PixelsRecord, ScoreRecord, StageArtifact, TranslationRecord
from rudalle_lib.storage.storage import Storage
from rudalle_lib.text.prompt_translation import translated_pairs
from rudalle_lib.weights.second_scorer import second_of
from tasks.runtime.events import notice, reporter
from tasks.runtime.job import Job
from tasks.runtime.models import device_slot_if, scorer, second_scorer
from tasks.runtime.options import OPTIONS, run_name

STAGE = "score"


@task(name=STAGE, task_run_name=run_name(STAGE), **OPTIONS)
def score(
    section: ScoreConfig,
    job: Job,
    translated: StageArtifact,
    decoded: StageArtifact,
    fingerprint: str,
) -> StageArtifact:
    """Score all decoded images; one `ScoreRecord` per image, in order.

    Images that an earlier run has scored keep their score.
    """
    done = find_artifact(Storage(job.output), STAGE, job.shard, fingerprint, notice, job.term)
    if done is not None:
        return done
    report = reporter(STAGE, job.shard.index)
    return score_missing(section, job, translated, decoded, fingerprint, report)


def score_missing(
    section: ScoreConfig,
    job: Job,
    translated: StageArtifact,
    decoded: StageArtifact,
    fingerprint: str,
    report: OnProgress,
    finished: bool = True,
) -> StageArtifact:
    """Score the images that are not scored yet, and write the scores of all, ranked anew.

    Args:
        section, job, translated, decoded, fingerprint: as `score`.
        report: called with scored images, and all that are to be scored.
        finished: whether `decoded` has all candidates of the shard.
    """
    storage = Storage(job.output)
    translations = from_table(read_artifact(storage, translated), TranslationRecord)
    texts = {row.prompt_id: row.text_ru or "" for row in translations}
    pairs = translated_pairs(translations) if section.compare_translations else {}
    rows = from_table(read_artifact(storage, decoded), PixelsRecord)
    images = [row for row in rows if row.image is not None]
    made = find_made(storage, STAGE, job.shard, fingerprint, ScoreRecord, job.reuse, job.term)
    todo = [row for row in images if row.image_id not in made.rows]
    if made.saved is not None and not finished and not todo and len(images) == len(made.rows):
        return made.saved
    records: list[ScoreRecord] = []
    with device_slot_if(bool(todo), job.runtime, job.shard.index) as slot:
        if todo:
            loaded = scorer(section.model, job.weights, slot.device, section.dtype)
            model = Scorer(loaded.model, loaded.tokenizer, section.templates, section.batch_size)
            second = _second(section, job, translations, slot.device)
            compared = compare_translations(model, pairs)
            records = score_rows(model, todo, texts, section, report, second, compared)
    scores = {**made.rows, **{row.image_id: row for row in records}}
    ranked = rank_again([scores[row.image_id] for row in images])
    return write_artifact(
        storage, STAGE, job.shard, fingerprint, to_table(ranked, ScoreRecord),
        slot.seconds + made.seconds, made.use_with(slot.use), job.term,
        job.reuse.rows.get(STAGE), finished,
    )  # fmt: skip


def _second(
    section: ScoreConfig,
    job: Job,
    translations: Sequence[TranslationRecord],
    device: torch.device,
) -> Second | None:
    """The second scorer with the texts that it reads, if there is one."""
    if section.second_model is None:
        return None
    loaded = second_scorer(section.second_model, job.weights, device, section.dtype)
    return second_of(loaded, section, translations)
