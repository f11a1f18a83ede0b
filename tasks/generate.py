"""Generate: the image tokens of every candidate of a shard."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from prefect import task
from torch import Tensor

from rudalle_lib.batch_size import choose_batch_size
from rudalle_lib.borders import Borders
from rudalle_lib.candidates import Candidate, candidates_of
from rudalle_lib.canvas import Canvas, DrawnCanvas, generate_canvases
from rudalle_lib.config import GenerateConfig
from rudalle_lib.errors import SettingsError
from rudalle_lib.guidance import NO_GUIDANCE
from rudalle_lib.image_prompts import encode_image_prompt, read_picture
from rudalle_lib.models.dalle import Dalle
from rudalle_lib.planning import read_shard
from rudalle_lib.preparation import prepare
from rudalle_lib.record_tables import from_table, to_table
from rudalle_lib.records import Overrides, StageArtifact, TokensRecord, TranslationRecord
from rudalle_lib.retrying import find_remaining
from rudalle_lib.stages import find_artifact, read_artifact, with_refused, write_artifact
from rudalle_lib.storage import Storage
from rudalle_lib.storage_errors import public_url
from rudalle_lib.tokenizer import EncodedText
from tasks.job import Job
from tasks.loaded_models import decoder, device_slot, vqgan
from tasks.options import OPTIONS, run_name
from tasks.progress import notice, reporter

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

    A prompt that cannot be drawn (too long, a canvas or image prompt that does not fit) gets none;
    the artifact's metadata says why, and it becomes a reject. Where some prompts of a finished
    shard are to be tried again, only those are.
    """
    storage = Storage(job.output)
    done = find_artifact(storage, STAGE, job.shard, fingerprint, notice)
    if done is not None:
        return done
    translations = from_table(read_artifact(storage, translated), TranslationRecord)
    russian = {row.prompt_id: row.text_ru for row in translations if row.text_ru is not None}
    remaining = find_remaining(storage, STAGE, job.shard, fingerprint)
    planned = read_shard(storage, job.shard)
    prompts = remaining.of(planned)
    every = job.runtime.split_decoder
    with device_slot(job.runtime, job.shard.index, every) as slot:
        loaded = decoder(section.model, job.weights, slot.devices, job.runtime.dtype)
        config, tokenizer = loaded.model.config, loaded.tokenizer
        encode = partial(_encode_picture, section, job, slot.device, config.image_vocab_size)
        ready = prepare(prompts, russian, section, tokenizer, config, encode)
        drawable = [prompt for prompt in prompts if prompt.prompt_id in ready.texts]
        candidates = list(candidates_of(drawable, section, run_seed))
        drawn = generate_canvases(
            loaded.model,
            _int64([text.ids for text in ready.texts.values()], config.text_length),
            ready.requests(candidates),
            _batch_size(section, loaded.model, slot.devices),
            reporter(STAGE, job.shard.index),
            empty_text=_int64([tokenizer.encode_text("", config.text_length).ids])[0],
        )
    own = {prompt.prompt_id: prompt.overrides for prompt in drawable}
    records = [
        _record(candidate, canvas, ready.texts[candidate.prompt_id], own[candidate.prompt_id])
        for candidate, canvas in zip(candidates, drawn, strict=True)
    ]
    table = with_refused(to_table(records, TokensRecord), ready.refused)
    table = remaining.merge(table, planned)
    seconds = slot.seconds + remaining.seconds
    return write_artifact(storage, STAGE, job.shard, fingerprint, table, seconds, slot.use)


def _batch_size(section: GenerateConfig, model: Dalle, devices: Sequence[torch.device]) -> int:
    branches = 1 if section.guidance == NO_GUIDANCE else 2
    return choose_batch_size(section.batch_size, model, devices, section.images, branches)


def _int64(rows: Sequence[list[int]], length: int = -1) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).view(len(rows), length)


def _encode_picture(
    section: GenerateConfig,
    job: Job,
    device: torch.device,
    codes: int,
    uri: str,
    borders: Borders,
    canvas: Canvas,
) -> Tensor:
    """The tokens of an image prompt; the VQ-GAN is loaded for the first of them."""
    model = vqgan(section.image_encoder or "", job.weights, device, "float32").model
    if model.config.n_embed != codes:
        raise SettingsError(
            f"generate.image_encoder does not belong to generate.model: expected {codes:,} codes, "
            f"found {model.config.n_embed:,}; choose the VQ-GAN that the decoder was trained with"
        )
    picture = read_picture(uri)
    crop = section.crop_image_prompts
    return encode_image_prompt(model, picture, borders, canvas.rows, canvas.columns, crop)


def _record(
    candidate: Candidate, drawn: DrawnCanvas, text: EncodedText, own: Overrides
) -> TokensRecord:
    rows, columns = drawn.tokens.shape
    return TokensRecord(
        image_id=candidate.image_id,
        prompt_id=candidate.prompt_id,
        replica=candidate.replica,
        seed=candidate.seed,
        tokens=drawn.tokens.flatten().tolist(),
        logprob=drawn.logprob,
        ppl=drawn.ppl,
        temperature=candidate.settings.temperature,
        top_k=candidate.settings.top_k,
        top_p=candidate.settings.top_p,
        truncated=text.truncated,
        guidance=candidate.settings.guidance,
        rows=rows,
        columns=columns,
        image_prompt=own.image_prompt and public_url(own.image_prompt),
        image_prompt_borders=own.image_prompt_borders,
    )
