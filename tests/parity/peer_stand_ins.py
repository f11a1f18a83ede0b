"""Stand-ins that let the reference implementations import beside today's libraries.

rudalle 1.1.3 and ruclip 0.0.2 import torchvision, `huggingface_hub.cached_download` and
`transformers.top_k_top_p_filtering`; the first is not needed to make golden outputs, the others
are gone. Call `install()` before importing a peer. Only the scripts that make goldens use it.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

import torch
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
    """An empty torchvision with the submodules that are imported by name."""
    torchvision = ModuleType("torchvision")
    transforms = ModuleType("torchvision.transforms")
    functional = ModuleType("torchvision.transforms.functional")
    utils = ModuleType("torchvision.utils")
    torchvision.transforms, torchvision.utils = transforms, utils  # type: ignore[attr-defined]
    transforms.functional = functional  # type: ignore[attr-defined]
    for module in (torchvision, transforms, functional, utils):
        sys.modules[module.__name__] = module
