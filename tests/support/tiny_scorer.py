"""A tiny ruCLIP with random weights and a tokenizer of letters, and images to score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rudalle_lib.images.codecs import encode_image
from rudalle_lib.images.scoring import Scorer
from rudalle_lib.models.ruclip import RuClip, RuClipConfig
from rudalle_lib.schema.records import PixelsRecord, image_id
from rudalle_lib.text.tokenizer import EncodedText

CONFIG = RuClipConfig(
    embed_dim=8,
    image_resolution=16,
    vision_layers=1,
    vision_width=16,
    vision_patch_size=8,
    vision_heads=2,
    context_length=12,
    vocab_size=40,
    transformer_width=16,
    transformer_heads=2,
    transformer_layers=1,
)


class LetterTokenizer:
    """One id per letter; records the texts that it encodes. It knows Latin and Cyrillic letters."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode_clip(self, text: str, length: int) -> EncodedText:
        self.seen.append(text)
        ids = [2, *(4 + ord(letter) % 36 for letter in text.lower())][: length - 1] + [3]
        return EncodedText(ids + [0] * (length - len(ids)), len(text) > length - 2)

    def knows(self, text: str) -> bool:
        return all(ord(letter) < 0x500 for letter in text)


def make_scorer(templates: Sequence[str] = ("{}",), batch_size: int = 2) -> Scorer:
    """The scorer; its weights are always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = RuClip(CONFIG).eval()
    return Scorer(model, LetterTokenizer(), templates, batch_size)


def pixel_rows(*prompt_ids: str) -> list[PixelsRecord]:
    """One image of noise per prompt id, of two sizes in turn."""
    rows = []
    for number, prompt_id in enumerate(prompt_ids):
        width = 16 + 4 * (number % 2)
        pixels = torch.from_numpy(
            np.random.default_rng(number).integers(0, 256, (3, 16, width), dtype=np.uint8)
        )
        rows.append(
            PixelsRecord(image_id(prompt_id, number), prompt_id, width, 16, encode_image(pixels))
        )
    return rows
