"""Whether a model is all there and works: its files, its digest, and a tiny forward on the CPU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rudalle_lib import registry
from rudalle_lib.config import WeightsConfig
from rudalle_lib.errors import WeightsError
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.registry import ModelEntry
from rudalle_lib.scoring import Scorer
from rudalle_lib.upscaling import upscale
from rudalle_lib.weight_files import DEFAULT, resolve_files
from rudalle_lib.weight_records import file_digest
from rudalle_lib.weights import (
    load_decoder,
    load_scorer,
    load_segmenter,
    load_translator,
    load_upscaler,
    load_vqgan,
)

LARGE = 4_000_000_000
"""Parameters of a decoder above which it is loaded in 8 bits, to fit into a usual machine."""

CAPTION = "красный квадрат"


@dataclass(frozen=True)
class Verification:
    """What was seen.

    Attributes:
        files: path by role.
        sha256: of the files, in hex, by role.
        made: what came out of the tiny forward, in a few words.
        seconds: that loading and the forward took.
    """

    entry: ModelEntry
    files: Mapping[str, Path]
    sha256: Mapping[str, str]
    made: str
    seconds: float


def verify(name: str, weights: WeightsConfig = DEFAULT) -> Verification:
    """Find, digest and load a model and run it once; fetches files that are not here.

    Raises:
        ConfigError: no such model.
        WeightsError: its files cannot be had or do not fit, or what it makes is not finite.
    """
    entry = registry.get(name)
    files = resolve_files(entry, weights)
    sha256 = {role: file_digest(path) for role, path in files.items()}
    started = time.perf_counter()
    with torch.inference_mode():
        made = _run(entry, weights)
    return Verification(entry, files, sha256, made, time.perf_counter() - started)


def _run(entry: ModelEntry, weights: WeightsConfig) -> str:
    if entry.kind == "translator":
        text = load_translator(entry.name, weights).translate(["a red square"])[0]
        return f"a translation of 'a red square': {text!r}"
    output = {
        "decoder": _draw,
        "vqgan": _decode,
        "scorer": _score,
        "upscaler": _enlarge,
        "segmenter": _segment,
    }[entry.kind](entry, weights)
    if not output.isfinite().all():
        raise WeightsError(
            f"{entry.name} loads, but what it makes is not finite: its weights are damaged; "
            "fetch them again"
        )
    return f"{entry.kind} output {list(output.shape)}, finite"


def _draw(entry: ModelEntry, weights: WeightsConfig) -> Tensor:
    """Logits of the first image token: [1, image_vocab_size]."""
    loaded = load_decoder(entry.name, weights, dtype=_precision(entry))
    config = loaded.model.config
    ids = loaded.tokenizer.encode_text(CAPTION, config.text_length).ids
    return loaded.model(torch.tensor([ids]))[:, -1, config.text_vocab_size :]


def _precision(entry: ModelEntry) -> torch.dtype:
    if not entry.architecture:  # a packaged one is small
        return torch.float32
    with torch.device("meta"):
        network: nn.Module = Dalle(DalleConfig(**entry.architecture))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return torch.int8 if parameters > LARGE else torch.bfloat16


def _decode(entry: ModelEntry, weights: WeightsConfig) -> Tensor:
    """Four by four tokens as a picture."""
    model = load_vqgan(entry.name, weights).model
    return model.decode(torch.zeros(1, 4, 4, dtype=torch.int64))


def _score(entry: ModelEntry, weights: WeightsConfig) -> Tensor:
    """The cosine of a grey picture and a caption: [1]."""
    loaded = load_scorer(entry.name, weights)
    grey = torch.full((1, 3, 32, 32), 127, dtype=torch.uint8)
    return Scorer(loaded.model, loaded.tokenizer, ["{}"]).score(grey, [CAPTION])


def _enlarge(entry: ModelEntry, weights: WeightsConfig) -> Tensor:
    """A grey picture of 16 pixels, larger; always finite, being bytes."""
    model = load_upscaler(entry.name, weights).model
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        return torch.tensor([torch.nan])
    return upscale(model, torch.full((1, 3, 16, 16), 127, dtype=torch.uint8), batch_size=1)


def _segment(entry: ModelEntry, weights: WeightsConfig) -> Tensor:
    """What a grey picture of 64 pixels is made of: [1, classes, 64, 64]."""
    return load_segmenter(entry.name, weights).model(torch.full((1, 3, 64, 64), 0.5))
