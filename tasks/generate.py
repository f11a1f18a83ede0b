"""Generate: the image tokens of every candidate of a shard."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from prefect import task
from torch import Tensor

from rudalle_lib.candidates import Candidate, candidates_of
from rudalle_lib.config import GenerateConfig
from rudalle_lib.planning import read_shard
from rudalle_lib.records import (
    StageArtifact,
    TokensRecord,
    TranslationRecord,
    from_table,
    to_table,
)
from rudalle_lib.sampling import GeneratedTokens, generate_tokens
from rudalle_lib.stages import find_artifact, read_artifact, write_artifact
from rudalle_lib.storage import Storage
from rudalle_lib.tokenizer import EncodedText
from tasks.job import Job
from tasks.loaded_models import decoder, device_slot
from tasks.options import OPTIONS, run_name
from tasks.progress import reporter

STAGE = "generate"


@task(name=STAGE, task_run_name=run_name(STAGE), **OPTIONS)
def generate(
    section: GenerateConfig,
    job: Job,
    translated: StageArtifact,
    fingerprint: str,
    run_seed: int,
) -> StageArtifact:
    """Draw the candidates of every translated prompt; `TokensRecord`s in the order of the plan.

    A prompt that is too long for the decoder and may not be cut gets none, and becomes a reject.
    """
    storage = Storage(job.output)
    done = find_artifact(storage, STAGE, job.shard, fingerprint)
    if done is not None:
        return done
    translations = from_table(read_artifact(storage, translated), TranslationRecord)
    russian = {row.prompt_id: row.text_ru for row in translations if row.text_ru is not None}
    with device_slot(job.runtime, job.shard.index) as slot:
        loaded = decoder(section.model, job.weights, slot.device, job.runtime.dtype)
        length = loaded.model.config.text_length
        texts = {name: loaded.tokenizer.encode_text(russian[name], length) for name in russian}
        if not section.allow_truncation:
            texts = {name: text for name, text in texts.items() if not text.truncated}
        place = {prompt_id: index for index, prompt_id in enumerate(texts)}
        prompts = [prompt for prompt in read_shard(storage, job.shard) if prompt.prompt_id in texts]
        candidates = list(candidates_of(prompts, section, run_seed))
        drawn = generate_tokens(
            loaded.model,
            _int64([text.ids for text in texts.values()]).view(len(texts), length),
            _int64([place[candidate.prompt_id] for candidate in candidates]),
            _int64([candidate.seed for candidate in candidates]),
            [candidate.settings for candidate in candidates],
            section.batch_size,
            reporter(STAGE, job.shard.index),
        )
    table = to_table(_records(candidates, drawn, texts), TokensRecord)
    return write_artifact(storage, STAGE, job.shard, fingerprint, table, slot.seconds)


def _int64(values: Sequence[int] | Sequence[list[int]]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def _records(
    candidates: Sequence[Candidate], drawn: GeneratedTokens, texts: dict[str, EncodedText]
) -> list[TokensRecord]:
    columns = (drawn.tokens.tolist(), drawn.logprob.tolist(), drawn.ppl.tolist())
    return [
        TokensRecord(
            image_id=candidate.image_id,
            prompt_id=candidate.prompt_id,
            replica=candidate.replica,
            seed=candidate.seed,
            tokens=tokens,
            logprob=logprob,
            ppl=ppl,
            temperature=candidate.settings.temperature,
            top_k=candidate.settings.top_k,
            top_p=candidate.settings.top_p,
            truncated=texts[candidate.prompt_id].truncated,
        )
        for candidate, tokens, logprob, ppl in zip(candidates, *columns, strict=True)
    ]
