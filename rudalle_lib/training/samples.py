"""Samples of a decoder in training or on its shelf: captions in, pictures out."""

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
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.sampling import SamplingSettings, generate_tokens
from rudalle_lib.seeds import image_seed
from rudalle_lib.tokenizer import Tokenizer

SETTINGS = SamplingSettings(temperature=1.0, top_k=0, top_p=0.98)


def draw_samples(
    folder: Path, vqgan: VqGan, scenes: Sequence[Scene], seed: int, batch: int = 128
) -> NDArray[np.uint8]:
    """One picture a scene, drawn by the decoder of a weights folder; uint8 [N, 128, 128, 3]."""
    config = DalleConfig(**json.loads((folder / "config.json").read_text()))
    model = Dalle(config)
    tensors = load_file(folder / "model.safetensors")
    model.load_state_dict({name: value.float() for name, value in tensors.items()})
    tokenizer = Tokenizer.load(folder / "bpe.model")
    return sample_pictures(model.eval(), tokenizer, vqgan, scenes, seed, batch)


def sample_pictures(
    model: Dalle,
    tokenizer: Tokenizer,
    vqgan: VqGan,
    scenes: Sequence[Scene],
    seed: int,
    batch: int = 128,
) -> NDArray[np.uint8]:
    """One picture a scene by its canonical caption; uint8 [N, 128, 128, 3]."""
    tokens = sample_tokens(model, tokenizer, scenes, seed, batch)
    return np.concatenate([to_uint8(vqgan.decode(part)) for part in tokens.split(32)])


def sample_tokens(
    model: Dalle, tokenizer: Tokenizer, scenes: Sequence[Scene], seed: int, batch: int = 128
) -> Tensor:
    """Tokens of one picture a scene by its canonical caption; int64 [N, 16, 16]."""
    captions = [russian_caption(scene) for scene in scenes]
    text = [tokenizer.encode_text(c, model.config.text_length).ids for c in captions]
    seeds = [image_seed(seed, str(index), 0) for index in range(len(scenes))]
    drawn = generate_tokens(
        model, torch.tensor(text), torch.arange(len(scenes)), torch.tensor(seeds), SETTINGS, batch
    )
    return drawn.tokens.view(-1, model.config.image_height, model.config.image_width)


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """Float [B, 3, H, W] in [-1, 1] to uint8 [B, H, W, 3]."""
    scaled = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().numpy()
