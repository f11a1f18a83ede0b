"""The whole way for one text, in memory: draw, rank, enlarge. For scripts and notebooks.

Pictures are the very ones that a run with the same seed, models and settings makes of this text.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rudalle_lib.cutout import cut_out
from rudalle_lib.images import to_uint8
from rudalle_lib.prompts import content_digest, normalise
from rudalle_lib.sampling import SamplingSettings, generate_tokens
from rudalle_lib.scoring import REFERENCE_TEMPLATES, Scorer
from rudalle_lib.seeds import image_seed
from rudalle_lib.upscaling import upscale
from rudalle_lib.weights import (
    LoadedDecoder,
    LoadedScorer,
    LoadedSegmenter,
    LoadedUpscaler,
    LoadedVqGan,
)

PUBLISHED = SamplingSettings()
"""Top-k 2048 and top-p 0.995, as in the published examples."""


@torch.inference_mode()
def draw_pictures(
    decoder: LoadedDecoder,
    vqgan: LoadedVqGan,
    text: str,
    images: int = 8,
    seed: int = 0,
    settings: SamplingSettings = PUBLISHED,
    batch_size: int = 32,
    prompt_id: str | None = None,
    first: int = 0,
) -> Tensor:
    """Draw a text, in the decoder's language (Russian).

    Args:
        decoder, vqgan: made for each other.
        text: cut where it is longer than the decoder reads.
        images: how many pictures.
        seed: the same seed gives the same pictures.
        settings: how tokens are chosen.
        batch_size: pictures drawn at once.
        prompt_id: of the prompt in a run; by default that of a prompt with this very text.
        first: number of the first of them among the candidates of the prompt.

    Returns:
        uint8 [images, 3, H, W], RGB, on the CPU.
    """
    text, length = normalise(text), decoder.model.config.text_length
    prompt_id = prompt_id or content_digest(text, {})
    ids = [decoder.tokenizer.encode_text(words, length).ids for words in (text, "")]
    text_ids, empty_text = torch.tensor(ids).split(1)
    seeds = [image_seed(seed, prompt_id, replica) for replica in range(first, first + images)]
    drawn = generate_tokens(
        decoder.model,
        text_ids,
        torch.zeros(images, dtype=torch.int64),
        torch.tensor(seeds, dtype=torch.int64),
        settings,
        batch_size,
        empty_text=empty_text[0],
    )
    grid = decoder.model.config.image_height, decoder.model.config.image_width
    tokens = drawn.tokens.to(vqgan.model.quant_conv.weight.device).view(images, *grid)
    pictures = [vqgan.model.decode(batch) for batch in tokens.split(batch_size)]
    return to_uint8(torch.cat(pictures), -1.0, 1.0).cpu()


def rank_pictures(
    scorer: LoadedScorer,
    pictures: Tensor,
    text: str,
    templates: tuple[str, ...] = REFERENCE_TEMPLATES,
) -> tuple[list[int], list[float]]:
    """Order pictures by how well they show a text.

    Args:
        scorer: a ruCLIP.
        pictures: uint8 [N, 3, H, W].
        text: what they should show.
        templates: sentences around the text, over which its features are averaged.

    Returns:
        Indices of the pictures, the best first, and the cosine of each in the same order.
    """
    scores = Scorer(scorer.model, scorer.tokenizer, templates).score(
        pictures, [text] * len(pictures)
    )
    order = scores.argsort(descending=True, stable=True)
    return order.tolist(), scores[order].tolist()


def enlarge_pictures(upscaler: LoadedUpscaler, pictures: Tensor, batch_size: int = 4) -> Tensor:
    """Enlarge pictures uint8 [N, 3, H, W] by the network's scale; the result is on the CPU."""
    device = upscaler.model.conv_first.weight.device
    return upscale(upscaler.model, pictures.to(device), batch_size).cpu()


def cut_out_pictures(pictures: Tensor, segmenter: LoadedSegmenter | None = None) -> Tensor:
    """Make the ground of pictures transparent: uint8 [N, 3, H, W] to [N, 4, H, W] on the CPU.

    Without a segmenter, or where it is not sure, the ground is told by its colour; a picture that
    has none stays as it is.
    """
    cutouts = cut_out(pictures, None if segmenter is None else segmenter.model)
    alpha = [torch.empty(0, *pictures.shape[2:], dtype=torch.uint8)]
    alpha += [cutout.alpha[None] for cutout in cutouts]
    return torch.cat((pictures.cpu(), torch.cat(alpha)[:, None]), dim=1)
