"""The generate stage: from prompts in Russian to the image tokens of every candidate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from rudalle_lib.config.sections import GenerateConfig
from rudalle_lib.errors import SettingsError
from rudalle_lib.generation.batch_size import choose_batch_size
from rudalle_lib.generation.candidates import Candidate, Replicas, candidates_of
from rudalle_lib.generation.canvas import Canvas, DrawnCanvas, generate_canvases
from rudalle_lib.generation.guidance import NO_GUIDANCE
from rudalle_lib.generation.image_prompts import encode_image_prompt, read_image
from rudalle_lib.generation.requests import EncodeImagePrompt, prepare
from rudalle_lib.models.dalle import Dalle
from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.runtime.batching import OnProgress, no_progress
from rudalle_lib.schema.borders import Borders
from rudalle_lib.schema.records import Overrides, Prompt, Reject, TokensRecord
from rudalle_lib.storage.errors import public_url
from rudalle_lib.storage.reading import ROWS, Reading
from rudalle_lib.text.tokenizer import EncodedText
from rudalle_lib.weights.loading import LoadedDecoder


def draw_candidates(
    decoder: LoadedDecoder,
    prompts: Sequence[Prompt],
    texts: Mapping[str, str],
    section: GenerateConfig,
    run_seed: int,
    encode_prompt: EncodeImagePrompt,
    batch_size: int,
    on_progress: OnProgress = no_progress,
    replicas: Replicas | None = None,
    batch_rows: int = 0,
) -> tuple[list[TokensRecord], dict[str, Reject]]:
    """Draw the candidates of prompts.

    Args:
        decoder: the network and its tokenizer.
        prompts: with their overrides.
        texts: the prompts in Russian, by prompt id; prompts without a text are skipped.
        section: settings of the run.
        run_seed: seed of the run.
        encode_prompt: reads and encodes image prompts (`image_prompt_encoder`).
        batch_size: images drawn at once; halved if memory runs out.
        on_progress: called with drawn and all image tokens.
        replicas: numbers of the candidates to draw; None draws all that the settings ask for.
        batch_rows: rows of the decoder; 0 is as many as these images need. A run always has
            `decoder_rows`.

    Returns:
        A row per candidate, in the order of the prompts, and a reject by prompt id for each prompt
        that cannot be drawn: too long a text, a canvas or an image prompt that does not fit.

    Raises:
        SettingsError: settings that do not fit the decoder.
        TransientError: an image prompt that may be readable later.
        OutOfMemoryError: a single image does not fit into memory.
        RudalleError: the output of the network is not finite.
    """
    config, tokenizer = decoder.model.config, decoder.tokenizer
    ready = prepare(prompts, texts, section, tokenizer, config, encode_prompt)
    drawable = [prompt for prompt in prompts if prompt.prompt_id in ready.texts]
    candidates = list(candidates_of(drawable, section, run_seed, replicas))
    drawn = generate_canvases(
        decoder.model,
        _int64([text.ids for text in ready.texts.values()], config.text_length),
        ready.requests(candidates),
        batch_size,
        on_progress,
        empty_text=_int64([tokenizer.encode_text("", config.text_length).ids])[0],
        batch_rows=batch_rows or None,
    )
    overrides = {prompt.prompt_id: prompt.overrides for prompt in drawable}
    records = [
        _record(one, canvas, ready.texts[one.prompt_id], overrides[one.prompt_id])
        for one, canvas in zip(candidates, drawn, strict=True)
    ]
    return records, ready.rejects


def drawing_batch_size(
    section: GenerateConfig,
    model: Dalle,
    devices: Sequence[torch.device],
    prompts: Sequence[Prompt] = (),
) -> int:
    """The batch size of a configuration; "auto" is what fits into the memory of the devices.

    Args:
        section: settings of the run.
        model: the decoder, in memory.
        devices: the devices that its layers are spread over.
        prompts: with their overrides; any of them may have guidance of its own.
    """
    scales = {section.guidance, *(prompt.overrides.guidance for prompt in prompts)} - {None}
    branches = 1 if scales == {NO_GUIDANCE} else 2
    return choose_batch_size(section.batch_size, model, devices, section.images, branches)


def decoder_rows(section: GenerateConfig, batch_size: int) -> int:
    """The rows of the decoder in a run, whatever guidance single prompts ask for.

    On a GPU all batches have as many, so that no image depends on its batch.
    """
    return batch_size if section.guidance == NO_GUIDANCE else 2 * batch_size


def image_prompt_encoder(
    load: Callable[[], VqGan], section: GenerateConfig, codes: int, rules: Reading = ROWS
) -> EncodeImagePrompt:
    """What reads image prompts and encodes them.

    Args:
        load: returns the VQ-GAN; called for every image prompt.
        section: settings of the run.
        codes: size of the decoder's codebook.
        rules: for reading image prompts.
    """

    def encode(uri: str, borders: Borders, canvas: Canvas) -> Tensor:
        model = load()
        if model.config.n_embed != codes:
            raise SettingsError(
                "generate.image_encoder does not belong to generate.model: expected "
                f"{codes:,} codes, found {model.config.n_embed:,}; choose the VQ-GAN that the "
                "decoder was trained with"
            )
        crop = section.crop_image_prompts
        image = read_image(uri, rules=rules)
        return encode_image_prompt(model, image, borders, canvas.rows, canvas.columns, crop)

    return encode


def _int64(rows: Sequence[list[int]], length: int = -1) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).view(len(rows), length)


def _record(
    candidate: Candidate, drawn: DrawnCanvas, text: EncodedText, overrides: Overrides
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
        image_prompt=overrides.image_prompt and public_url(overrides.image_prompt),
        image_prompt_borders=overrides.image_prompt_borders,
    )
