"""Translate: every prompt of a shard in Russian, the language that the decoder reads."""

from __future__ import annotations

from prefect import task

from rudalle_lib.config import TranslateConfig
from rudalle_lib.planning import read_shard
from rudalle_lib.records import NO_DEVICE, StageArtifact, TranslationRecord, to_table
from rudalle_lib.retrying import find_remaining
from rudalle_lib.stages import find_artifact, write_artifact
from rudalle_lib.storage import Storage
from rudalle_lib.translation import language_of
from tasks.job import Job
from tasks.loaded_models import device_slot, translator
from tasks.options import OPTIONS, run_name
from tasks.progress import notice

STAGE = "translate"


@task(name=STAGE, task_run_name=run_name(STAGE), **OPTIONS)
def translate(
    section: TranslateConfig,
    job: Job,
    fingerprint: str,
) -> StageArtifact:
    """Translate what is not Russian; `TranslationRecord`s in the order of the plan.

    A prompt that the translator has no good answer for gets none, and becomes a reject. Where some
    prompts of a finished shard are to be tried again, only those are.
    """
    storage = Storage(job.output)
    done = find_artifact(storage, STAGE, job.shard, fingerprint, notice)
    if done is not None:
        return done
    every = read_shard(storage, job.shard)
    remaining = find_remaining(storage, STAGE, job.shard, fingerprint)
    prompts = remaining.of(every)
    languages = [language_of(prompt.lang, prompt.text, section.language) for prompt in prompts]
    foreign = [
        prompt.text for prompt, language in zip(prompts, languages, strict=True) if language != "ru"
    ]
    seconds, use = 0.0, NO_DEVICE
    translated: dict[str, str | None] = {}
    if foreign:
        with device_slot(job.runtime, job.shard.index) as slot:
            model = translator(section.model, job.weights, slot.device)
            answers = model.translate(foreign, "en", section.batch_size)
        seconds, use = slot.seconds, slot.use
        translated = dict(zip(foreign, answers, strict=True))
    records = [
        TranslationRecord(
            prompt.prompt_id,
            prompt.text,
            language,
            prompt.text if language == "ru" else translated[prompt.text],
        )
        for prompt, language in zip(prompts, languages, strict=True)
    ]
    table = remaining.merge(to_table(records, TranslationRecord), every)
    seconds += remaining.seconds
    return write_artifact(storage, STAGE, job.shard, fingerprint, table, seconds, use)
