"""Checks a model: finds its files, computes their digests, and runs a tiny forward on the CPU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.errors import WeightsError
from rudalle_lib.images.scoring import Scorer
from rudalle_lib.images.upscaling import upscale
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.registry import ModelEntry
from rudalle_lib.weights.digest_cache import file_digest
from rudalle_lib.weights.files import DEFAULT_WEIGHTS, resolve_files
from rudalle_lib.weights.loading import (
    load_decoder,
    load_scorer,
    load_segmenter,
    load_translator,
    load_upscaler,
    load_vqgan,
)

INT8_ABOVE = 4_000_000_000
"""Decoders with more parameters are loaded in 8 bits, so that they fit into common machines."""

CAPTION = "красный квадрат"
"""The prompt that decoders and scorers are run with."""


@dataclass(frozen=True)
class ModelCheck:
    """A model that loads and works.

    Attributes:
        entry: The model's registry entry.
        files: Paths by role.
        sha256: SHA-256 of the files in hex, by role.
        output: A short description of the forward's output.
        seconds: Time that loading and the forward took.
    """

    entry: ModelEntry
    files: Mapping[str, Path]
    sha256: Mapping[str, str]
    output: str
    seconds: float


def check_model(name: str, weights: WeightsConfig = DEFAULT_WEIGHTS) -> ModelCheck:
    """Find the files of a model, load it and run it once on the CPU.

    Args:
        name: Name in the registry.
        weights: Where to find weights; files that are missing locally are downloaded.

    Raises:
        ConfigError: There is no such model.
        WeightsError: Its files are not available or do not fit, or its output is not finite.
    """
    entry = weights.find(name)
    files = resolve_files(entry, weights)
    sha256 = {role: file_digest(path) for role, path in files.items()}
    started = time.perf_counter()
    with torch.inference_mode():
        output = _run(entry, weights)
    return ModelCheck(entry, files, sha256, output, time.perf_counter() - started)


def _run(entry: ModelEntry, weights: WeightsConfig) -> str:
    if entry.kind == "translator":
        text = load_translator(entry.name, weights).translate(["a red square"])[0]
        return f"a translation of 'a red square': {text!r}"
    output = {
        "decoder": _draw,
        "vqgan": _decode,
        "scorer": _score,
        "upscaler": _upscale,
        "segmenter": _segment,
    }[entry.kind](entry, weights)
    if not output.isfinite().all():
        raise WeightsError(
            f"{entry.name} loads, but its output is not finite: its weights are damaged; delete "
            "them and download them again"
        )
    return f"{entry.kind} output {list(output.shape)}, finite"


def _draw(entry: ModelEntry, weights: WeightsConfig) -> Tensor:
    """Logits of the first image token: [1, image_vocab_size]."""
    loaded = load_decoder(entry.name, weights, dtype=_precision(entry))
    config = loaded.model.config
    ids = loaded.tokenizer.encode_text(CAPTION, config.text_length).ids
    return loaded.model(torch.tensor([ids]))[:, -1, config.text_vocab_size :]


def _precision(entry: ModelEntry) -> torch.dtype:
    if not entry.architecture:  # packaged models are small
        return torch.float32
    with torch.device("meta"):
        network: nn.Module = Dalle(DalleConfig(**entry.architecture))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return torch.int8 if parameters > INT8_ABOVE else torch.bfloat16


def _decode(entry: ModelEntry, weights: WeightsConfig) -> Tensor:
    """The image of 4 x 4 tokens: [1, 3, H, W]."""
    model = load_vqgan(entry.name, weights).model
    return model.decode(torch.zeros(1, 4, 4, dtype=torch.int64))


def _score(entry: ModelEntry, weights: WeightsConfig) -> Tensor:
    """The cosine similarity of a grey image and a caption: [1]."""
    loaded = load_scorer(entry.name, weights)
    grey = torch.full((1, 3, 32, 32), 127, dtype=torch.uint8)
    return Scorer(loaded.model, loaded.tokenizer, ["{}"]).score(grey, [CAPTION])


def _upscale(entry: ModelEntry, weights: WeightsConfig) -> Tensor:
    """An upscaled grey image, uint8 [1, 3, H, W]; NaN if the weights are not finite."""
    model = load_upscaler(entry.name, weights).model
    # The uint8 output is always finite.
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        return torch.tensor([torch.nan])
    return upscale(model, torch.full((1, 3, 16, 16), 127, dtype=torch.uint8), batch_size=1)


def _segment(entry: ModelEntry, weights: WeightsConfig) -> Tensor:
    """The segmentation of a grey image: [1, classes, 64, 64]."""
    return load_segmenter(entry.name, weights).model(torch.full((1, 3, 64, 64), 0.5))
