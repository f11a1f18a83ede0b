"""Draw samples with a decoder, during training or from a weights folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from rudalle_lib.demo.captions import russian_caption
from rudalle_lib.demo.scenes import Scene
from rudalle_lib.generation.sampling import SamplingSettings, generate_tokens
from rudalle_lib.generation.seeds import image_seed
from rudalle_lib.images import codecs
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.text.tokenizer import Tokenizer

SETTINGS = SamplingSettings(temperature=1.0, top_k=0, top_p=0.98)
"""Sampling settings of all samples."""


def draw_samples(
    folder: Path, vqgan: VqGan, scenes: Sequence[Scene], seed: int, batch: int = 128
) -> NDArray[np.uint8]:
    """Draw one image per scene with the decoder of a weights folder. uint8 [N, 128, 128, 3]."""
    config = DalleConfig(**json.loads((folder / "config.json").read_text()))
    model = Dalle(config)
    tensors = load_file(folder / "model.safetensors")
    model.load_state_dict({name: value.float() for name, value in tensors.items()})
    tokenizer = Tokenizer.load(folder / "bpe.model")
    return sample_images(model.eval(), tokenizer, vqgan, scenes, seed, batch)


def sample_images(
    model: Dalle,
    tokenizer: Tokenizer,
    vqgan: VqGan,
    scenes: Sequence[Scene],
    seed: int,
    batch: int = 128,
) -> NDArray[np.uint8]:
    """Draw one image per scene from its canonical caption. Returns uint8 [N, 128, 128, 3]."""
    tokens = sample_tokens(model, tokenizer, scenes, seed, batch)
    return np.concatenate([to_uint8(vqgan.decode(part)) for part in tokens.split(32)])


def sample_tokens(
    model: Dalle, tokenizer: Tokenizer, scenes: Sequence[Scene], seed: int, batch: int = 128
) -> Tensor:
    """Draw the tokens of one image per scene from its canonical caption; int64 [N, 16, 16]."""
    captions = [russian_caption(scene) for scene in scenes]
    text = [tokenizer.encode_text(c, model.config.text_length).ids for c in captions]
    seeds = [image_seed(seed, str(index), 0) for index in range(len(scenes))]
    drawn = generate_tokens(
        model, torch.tensor(text), torch.arange(len(scenes)), torch.tensor(seeds), SETTINGS, batch
    )
    return drawn.tokens.view(-1, model.config.image_height, model.config.image_width)


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """Convert float [B, 3, H, W] in [-1, 1] to uint8 [B, H, W, 3]."""
    return codecs.to_uint8(images, -1.0, 1.0).permute(0, 2, 3, 1).contiguous().numpy()
