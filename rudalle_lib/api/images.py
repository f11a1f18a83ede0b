"""Draw, rank, enlarge and cut out images of one text, in memory. For scripts and notebooks.

The images are the same ones that a run with the same seed, models and settings makes of this text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rudalle_lib.config.sections import GenerateConfig
from rudalle_lib.errors import RudalleError
from rudalle_lib.generation.draw import draw_candidates
from rudalle_lib.generation.sampling import SamplingSettings
from rudalle_lib.images.cutout import cut_out
from rudalle_lib.images.decoding import decode_tokens
from rudalle_lib.images.scoring import REFERENCE_TEMPLATES, Scorer
from rudalle_lib.images.upscaling import upscale
from rudalle_lib.prompts.prompt_texts import normalise
from rudalle_lib.prompts.rows import content_digest
from rudalle_lib.runtime.batching import OnProgress, map_batches, no_progress
from rudalle_lib.schema.borders import Borders
from rudalle_lib.schema.records import Overrides, Prompt
from rudalle_lib.weights.loading import (
    LoadedDecoder,
    LoadedScorer,
    LoadedSegmenter,
    LoadedUpscaler,
    LoadedVqGan,
)

PUBLISHED = SamplingSettings()
"""Top-k 2048 and top-p 0.995, as in the published examples."""


def draw_images(
    decoder: LoadedDecoder,
    vqgan: LoadedVqGan,
    text: str,
    images: int = 8,
    seed: int = 0,
    settings: SamplingSettings = PUBLISHED,
    batch_size: int = 32,
    prompt_id: str | None = None,
    first: int = 0,
    on_progress: OnProgress = no_progress,
) -> Tensor:
    """Draw candidates of a text, in the decoder's language (Russian).

    Args:
        decoder: the network and its tokenizer (`load_decoder`).
        vqgan: the VQ-GAN that the decoder was trained with (`load_vqgan`).
        text: truncated if it is longer than the decoder reads.
        images: number of images.
        seed: the same seed gives the same images.
        settings: how tokens are sampled.
        batch_size: images drawn at once; halved if memory runs out.
        prompt_id: of the prompt in a run; by default that of a prompt with exactly this text.
        first: number of the first image among the candidates of the prompt.
        on_progress: called with drawn and all image tokens.

    Returns:
        uint8 [images, 3, H, W], RGB, on the CPU.

    Raises:
        SettingsError: settings that do not fit the decoder, or a VQ-GAN that does not belong to it.
        OutOfMemoryError: a single image does not fit into memory.
        RudalleError: the output of a network is not finite.
    """
    text = normalise(text)
    sampling = (settings.temperature, settings.top_k, settings.top_p, settings.guidance)
    overrides = Overrides(first + images, seed, *sampling)
    prompt = Prompt(prompt_id or content_digest(text, {}), text, "ru", overrides=overrides)
    rows, _ = draw_candidates(
        decoder,
        [prompt],
        {prompt.prompt_id: text},
        GenerateConfig(),
        seed,
        _no_image_prompts,
        batch_size,
        on_progress,
        range(first, first + images),
    )
    grid = (decoder.model.config.image_height, decoder.model.config.image_width)
    tokens = torch.tensor([row.tokens for row in rows]).view(len(rows), *grid)

    def work(batch: Sequence[int]) -> Sequence[Tensor]:
        decoded, finite = decode_tokens(vqgan.model, tokens[list(batch)])
        if not all(finite):
            raise RudalleError("The VQ-GAN returned NaN or infinite pixels: check its weights.")
        return list(decoded)

    decoded = map_batches([None] * len(rows), batch_size, work, "decoding a single image")
    side = vqgan.model.config.downsampling
    none = torch.empty(0, 3, grid[0] * side, grid[1] * side, dtype=torch.uint8)
    return torch.stack(decoded) if decoded else none


def rank_images(
    scorer: LoadedScorer,
    images: Tensor,
    text: str,
    templates: tuple[str, ...] = REFERENCE_TEMPLATES,
) -> tuple[list[int], list[float]]:
    """Order images by how well they show a text.

    Args:
        scorer: a ruCLIP (`load_scorer`).
        images: uint8 [N, 3, H, W].
        text: what they should show.
        templates: sentences around the text, over which its features are averaged.

    Returns:
        Indices of the images, the best first, and the cosine of each in the same order.
    """
    scores = Scorer(scorer.model, scorer.tokenizer, templates).score(images, [text] * len(images))
    order = scores.argsort(descending=True, stable=True)
    return order.tolist(), scores[order].tolist()


def upscale_images(upscaler: LoadedUpscaler, images: Tensor, batch_size: int = 4) -> Tensor:
    """Enlarge images by the scale of the network.

    Args:
        upscaler: a super-resolution network (`load_upscaler`).
        images: uint8 [N, 3, H, W], RGB.
        batch_size: images enlarged at once.

    Returns:
        uint8 [N, 3, scale * H, scale * W] on the CPU.
    """
    device = upscaler.model.conv_first.weight.device
    return upscale(upscaler.model, images.to(device), batch_size).cpu()


def cut_out_images(images: Tensor, segmenter: LoadedSegmenter | None = None) -> Tensor:
    """Make the background of images transparent.

    Args:
        images: uint8 [N, 3, H, W], RGB.
        segmenter: finds the background (`load_segmenter`). Without one, or if it is not sure, the
            background is found by its colour. An image without a plain background stays opaque.

    Returns:
        uint8 [N, 4, H, W], RGBA, on the CPU.
    """
    cutouts = cut_out(images, None if segmenter is None else segmenter.model)
    alpha = [torch.empty(0, *images.shape[2:], dtype=torch.uint8)]
    alpha += [cutout.alpha[None] for cutout in cutouts]
    return torch.cat((images.cpu(), torch.cat(alpha)[:, None]), dim=1)


def _no_image_prompts(uri: str, borders: Borders, canvas: object) -> Tensor:
    raise AssertionError("a text alone has no image prompt")
