"""Translate: turn the prompts of a shard into Russian, the language that the decoder reads."""

from __future__ import annotations

from prefect import task

from rudalle_lib.config.sections import TranslateConfig
from rudalle_lib.pipeline.artifacts import find_artifact, with_rejects, write_artifact
from rudalle_lib.pipeline.reuse import find_made
from rudalle_lib.prompts.plan import read_shard
from rudalle_lib.schema.arrow import to_table
from rudalle_lib.schema.records import StageArtifact, TranslationRecord
from rudalle_lib.storage.storage import Storage
from rudalle_lib.text.prompt_translation import needs_translator, translate_prompts
from tasks.runtime.device_locks import begin_on_cpu
from tasks.runtime.events import notice
from tasks.runtime.job import Job
from tasks.runtime.models import device_slot_if, translator
from tasks.runtime.options import OPTIONS, run_name

STAGE = "translate"


@task(name=STAGE, task_run_name=run_name(STAGE), **OPTIONS)
def translate(section: TranslateConfig, job: Job, fingerprint: str) -> StageArtifact:
    """Translate prompts that are not Russian; one `TranslationRecord` per prompt, in order.

    A prompt without a good translation becomes a reject. Translations of an earlier run are kept,
    unless their prompts were reopened.
    """
    begin_on_cpu(job.shard.index)
    storage = Storage(job.output)
    done = find_artifact(storage, STAGE, job.shard, fingerprint, notice, job.term)
    if done is not None:
        return done
    planned = read_shard(storage, job.shard)
    made = find_made(storage, STAGE, job.shard, fingerprint, TranslationRecord, job.reuse, job.term)
    prompts = [prompt for prompt in planned if prompt.prompt_id not in made.rows]
    source, _ = job.weights.find(section.model, "translator").languages
    needed = needs_translator(prompts, section.language, source)
    with device_slot_if(needed, job.runtime, job.shard.index) as slot:
        model = translator(section.model, job.weights, slot.device) if needed else None
        records, rejects = translate_prompts(
            prompts, section.language, source, model, section.batch_size
        )
    rows = {**made.rows, **{row.prompt_id: row for row in records}}
    table = to_table([rows[prompt.prompt_id] for prompt in planned], TranslationRecord)
    table = with_rejects(table, {**made.rejects, **rejects})
    seconds, use = slot.seconds + made.seconds, made.use_with(slot.use)
    return write_artifact(
        storage, STAGE, job.shard, fingerprint, table, seconds, use, job.term,
        job.reuse.rows.get(STAGE),
    )  # fmt: skip
