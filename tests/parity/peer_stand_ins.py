"""Stand-ins that let the reference implementations run with current libraries.

rudalle 1.1.3 and ruclip 0.0.2 import torchvision, of which they need only a few functions, and
`huggingface_hub.cached_download` and `transformers.top_k_top_p_filtering`, which no longer exist.
Call `install()` before importing a peer. The scripts that make goldens and the benchmarks of peers
use this module.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def install() -> None:
    """Add the missing names; do not change existing ones."""
    _add_name("huggingface_hub", "cached_download", _no_download)
    _add_name("transformers", "top_k_top_p_filtering", top_k_top_p_filtering)
    try:
        importlib.import_module("torchvision")
    except ImportError:
        _add_torchvision()


def _add_name(module_name: str, name: str, value: object) -> None:
    module = importlib.import_module(module_name)
    if not hasattr(module, name):
        setattr(module, name, value)


def _no_download(*_: Any, **__: Any) -> str:
    raise RuntimeError("nothing may be downloaded: golden outputs use random weights")


def top_k_top_p_filtering(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Set logits outside the top k and the nucleus of mass p to -inf, like transformers < 4.40."""
    if top_k > 0:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p < 1.0:
        ordered, order = logits.sort(descending=True)
        mass_before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        dropped = torch.zeros_like(logits, dtype=torch.bool)
        logits = logits.masked_fill(dropped.scatter(-1, order, mass_before > top_p), -torch.inf)
    return logits


def _add_torchvision() -> None:
    """Add a torchvision with the submodules that peers import and what ruclip's processor uses."""
    torchvision: Any = ModuleType("torchvision")
    transforms: Any = ModuleType("torchvision.transforms")
    functional = ModuleType("torchvision.transforms.functional")
    utils = ModuleType("torchvision.utils")
    torchvision.transforms, torchvision.utils = transforms, utils
    transforms.functional = functional
    for stand_in in (Compose, Lambda, RandomResizedCrop, ToTensor, Normalize):
        setattr(transforms, stand_in.__name__, stand_in)
    for module in (torchvision, transforms, functional, utils):
        sys.modules[module.__name__] = module


class Compose:
    """Apply transforms one after another."""

    def __init__(self, steps: list[Callable[[Any], Any]]) -> None:
        self.steps = steps

    def __call__(self, value: Any) -> Any:
        for step in self.steps:
            value = step(value)
        return value


class Lambda:
    """A function as a transform."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, value: Any) -> Any:
        return self.function(value)


class RandomResizedCrop:
    """torchvision's transform for scale and ratio 1, the only case needed; filter: bilinear.

    A square crop with the area of the image fits only a square image, so after ten tries
    torchvision takes the largest central square. (For nearly square images a crop may fit after
    rounding; torchvision then shifts it by a random pixel.) The bytes equal torchvision 0.29.2.
    """

    def __init__(self, size: int, scale: tuple[float, float], ratio: tuple[float, float]) -> None:
        if scale != (1.0, 1.0) or ratio != (1.0, 1.0):
            raise NotImplementedError(
                f"expected scale and ratio (1.0, 1.0), found {scale}, {ratio}"
            )
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        return square.resize((self.size, self.size), Image.Resampling.BILINEAR)


class ToTensor:
    """Convert a Pillow RGB image to float32 [3, H, W] in [0, 1]."""

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image))
        return pixels.permute(2, 0, 1).contiguous().float().div(255)


class Normalize:
    """Compute (value - mean) / std per channel."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        self.mean, self.std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (mean, std))

    def __call__(self, value: Tensor) -> Tensor:
        return value.sub(self.mean).div(self.std)
