"""Sheets of images that a network draws while it learns."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.distributed.tensor import DTensor

from rudalle_lib.config.fine_tune import TrainingConfig
from rudalle_lib.generation.sampling import SamplingSettings, generate_tokens
from rudalle_lib.generation.seeds import image_seed
from rudalle_lib.images.codecs import to_floats, to_pil, to_uint8
from rudalle_lib.models.dalle import Dalle
from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.report.contact_sheet import Tile, draw_contact_sheet, encode_contact_sheet
from rudalle_lib.training.decoder import gathered_decoder, merge_lora

SETTINGS = SamplingSettings(temperature=1.0, top_k=0, top_p=0.98)
"""Sampling settings of all samples."""

BATCH = 8
"""Images that are decoded at once."""


@torch.no_grad()
def draw_samples(model: Dalle, vqgan: VqGan, text: Tensor, seed: int) -> Tensor:
    """Draw one image per text; the same texts and seed give the same noise at every step.

    Args:
        model: the decoder, in evaluation mode.
        vqgan: the VQ-GAN, on the same device.
        text: int64 [N, T].
        seed: of the fine-tuning.

    Returns:
        uint8 [N, 3, H, W] on the CPU.
    """
    count = len(text)
    seeds = torch.tensor([image_seed(seed, str(number), 0) for number in range(count)])
    drawn = generate_tokens(model, text, torch.arange(count), seeds, SETTINGS, count)
    canvas = model.config.image_height, model.config.image_width
    tokens = drawn.tokens.view(-1, *canvas).to(vqgan.quantize.embed.weight.device)
    return torch.cat(
        [to_uint8(vqgan.decode(part), -1.0, 1.0).cpu() for part in tokens.split(BATCH)]
    )


@torch.no_grad()
def reconstructions(vqgan: VqGan, images: Tensor) -> Tensor:
    """What a VQ-GAN makes of images, uint8 [N, 3, H, W] both."""
    device = vqgan.quantize.embed.weight.device
    parts = [to_floats(part.to(device), -1.0, 1.0) for part in images.split(BATCH)]
    return torch.cat(
        [to_uint8(vqgan.decode(vqgan.encode(part)), -1.0, 1.0).cpu() for part in parts]
    )


def plain_copy(model: Dalle, training: TrainingConfig) -> Dalle | None:
    """A decoder that draws as this one does: itself, or a copy that is whole and of one type.

    Under FSDP all processes must call it. A network with LoRA, or with frozen weights in bfloat16,
    is of two types, which only training computes with.

    Args:
        model: the decoder, while it learns.
        training: the settings of the training.

    Returns:
        The decoder on the same device; under FSDP None in all processes but the first.
    """
    device = model.text_embeddings.weight.device
    has_lora = any(isinstance(module, LoraLayer) for module in model.modules())
    if isinstance(model.text_embeddings.weight, DTensor):
        copied = gathered_decoder(model, training)
    elif has_lora or len({parameter.dtype for parameter in model.parameters()}) > 1:
        copied = copy.deepcopy(model)
    else:
        return model
    if copied is None:
        return None
    merge_lora(copied)  # in float32
    return copied.eval().to(device, torch.bfloat16 if device.type == "cuda" else torch.float32)


def render_sheet(
    images: Tensor, captions: Sequence[str], title: str, facts: Sequence[str] = ()
) -> bytes:
    """Lay out images with their captions as a PNG; uint8 [N, 3, H, W]."""
    tiles = [Tile(to_pil(image), caption) for image, caption in zip(images, captions, strict=True)]
    return encode_contact_sheet(draw_contact_sheet(tiles, title, facts))
