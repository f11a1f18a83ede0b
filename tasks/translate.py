"""Translate: every prompt of a shard in Russian, the language that the decoder reads."""

from __future__ import annotations

from prefect import task

from rudalle_lib import registry
from rudalle_lib.config import TranslateConfig
from rudalle_lib.planning import read_shard
from rudalle_lib.record_tables import to_table
from rudalle_lib.records import NO_DEVICE, StageArtifact, TranslationRecord
from rudalle_lib.retrying import find_remaining
from rudalle_lib.stages import Refused, find_artifact, with_refused, write_artifact
from rudalle_lib.storage import Storage
from rudalle_lib.translation import Translation, in_russian, language_of
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

    A prompt that the translator has no good answer for gets none, and becomes a reject; the
    artifact's metadata says why. Where some prompts of a finished shard are to be tried again, only
    those are.
    """
    storage = Storage(job.output)
    done = find_artifact(storage, STAGE, job.shard, fingerprint, notice)
    if done is not None:
        return done
    every = read_shard(storage, job.shard)
    remaining = find_remaining(storage, STAGE, job.shard, fingerprint)
    prompts = remaining.of(every)
    source, _ = registry.get(section.model, "translator").languages
    languages = [language_of(p.lang, p.text, section.language, source) for p in prompts]
    spoken = list(zip(prompts, languages, strict=True))
    foreign = [prompt.text for prompt, language in spoken if language == source]
    seconds, use = 0.0, NO_DEVICE
    translated: dict[str, Translation] = {}
    if foreign:
        with device_slot(job.runtime, job.shard.index) as slot:
            model = translator(section.model, job.weights, slot.device)
            answers = model.translations(foreign, source, section.batch_size)
        seconds, use = slot.seconds, slot.use
        translated = dict(zip(foreign, answers, strict=True))
    records: list[TranslationRecord] = []
    refused: dict[str, Refused] = {}
    for prompt, language in spoken:
        answer = in_russian(prompt.text, language, source, translated)
        records.append(TranslationRecord(prompt.prompt_id, prompt.text, language, answer.text))
        if answer.text is None:
            detail = f"not translated from {language!r}: {answer.fault}; give it in Russian"
            refused[prompt.prompt_id] = "translation_failed", detail
    table = with_refused(to_table(records, TranslationRecord), refused)
    table = remaining.merge(table, every)
    seconds += remaining.seconds
    return write_artifact(storage, STAGE, job.shard, fingerprint, table, seconds, use)
