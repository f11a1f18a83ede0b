"""A stand-in for the package open_clip: its layout of files and its two functions, a tiny network.

The package needs torchvision, whose builds on PyPI load only beside a CUDA build of torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

VOCABULARY, SIDE = 128, 4
"""Letters of the tokenizer, and the side of the images that the network reads."""


class TinyClip(nn.Module):
    """Features of texts are means of embeddings of letters, those of images a linear map."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.letters = nn.Embedding(VOCABULARY, embed_dim)
        self.pixels = nn.Linear(3 * SIDE * SIDE, embed_dim)
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def encode_text(self, ids: Tensor, normalize: bool = False) -> Tensor:
        features = self.letters(ids).mean(dim=1)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        features = self.pixels(images.flatten(1))
        return F.normalize(features, dim=-1) if normalize else features


def write_tiny_clip(folder: Path, embed_dim: int = 8) -> None:
    """Write the files of a network with random weights, always the same, in open_clip's layout."""
    from safetensors.torch import save_file

    folder.mkdir()
    torch.manual_seed(0)
    save_file(TinyClip(embed_dim).state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": {"embed_dim": embed_dim}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def stand_in() -> ModuleType:
    """The module `open_clip`."""
    module: Any = ModuleType("open_clip")
    module.create_model_and_transforms = create_model_and_transforms
    module.get_tokenizer = lambda name: tokenize
    return module


def create_model_and_transforms(name: str, device: torch.device) -> tuple[TinyClip, Any, Any]:
    folder = Path(name.removeprefix("local-dir:"))
    sizes = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    model = TinyClip(sizes["embed_dim"])
    model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    return model.to(device), preprocess, preprocess


def preprocess(image: Image.Image) -> Tensor:
    small = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR).convert("RGB")
    pixels = torch.tensor(list(small.tobytes()), dtype=torch.float32)
    return pixels.view(SIDE, SIDE, 3).permute(2, 0, 1) / 255


def tokenize(texts: list[str]) -> Tensor:
    rows = [[ord(letter) % VOCABULARY for letter in text[:77].ljust(77)] for text in texts]
    return torch.tensor(rows)
