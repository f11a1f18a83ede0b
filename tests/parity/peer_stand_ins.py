"""Stand-ins that let the reference implementations import beside today's libraries.

rudalle 1.1.3 and ruclip 0.0.2 import torchvision, `huggingface_hub.cached_download` and
`transformers.top_k_top_p_filtering`; of the first only a few functions are needed, the others
are gone. Call `install()` before importing a peer. Only the scripts that make goldens use it.
"""

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
    """Put the missing names in place; what is there already is left alone."""
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
    raise RuntimeError("Golden outputs are made with random weights: nothing is to be downloaded.")


def top_k_top_p_filtering(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """What transformers < 4.40 had: -inf for all but the k best and the nucleus of mass p."""
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
    """A torchvision with the submodules imported by name, and what ruclip's processor uses."""
    torchvision = ModuleType("torchvision")
    transforms = ModuleType("torchvision.transforms")
    functional = ModuleType("torchvision.transforms.functional")
    utils = ModuleType("torchvision.utils")
    torchvision.transforms, torchvision.utils = transforms, utils  # type: ignore[attr-defined]
    transforms.functional = functional  # type: ignore[attr-defined]
    for stand_in in (Compose, Lambda, RandomResizedCrop, ToTensor, Normalize):
        setattr(transforms, stand_in.__name__, stand_in)
    for module in (torchvision, transforms, functional, utils):
        sys.modules[module.__name__] = module


class Compose:
    """One transform after the other."""

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
    """What torchvision does for scale and ratio 1, the only case here; default filter: bilinear.

    A square crop of the picture's area fits only a square picture, so after ten tries the largest
    central square is taken. (Nearly square pictures may fit by rounding; torchvision then shifts
    the crop by a random pixel.) Compared with torchvision 0.29.2: equal bytes.
    """

    def __init__(self, size: int, scale: tuple[float, float], ratio: tuple[float, float]) -> None:
        if scale != (1.0, 1.0) or ratio != (1.0, 1.0):
            raise NotImplementedError("only the whole picture at ratio 1 is needed here")
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        return square.resize((self.size, self.size), Image.Resampling.BILINEAR)


class ToTensor:
    """A Pillow RGB image to float32 [3, H, W] in [0, 1]."""

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image))
        return pixels.permute(2, 0, 1).contiguous().float().div(255)


class Normalize:
    """(value - mean) / std by channel."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        self.mean, self.std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (mean, std))

    def __call__(self, value: Tensor) -> Tensor:
        return value.sub(self.mean).div(self.std)
