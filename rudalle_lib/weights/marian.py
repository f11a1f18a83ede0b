"""Load translators: Marian networks and their tokenizers, in the file layout of OPUS-MT."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from rudalle_lib.errors import WeightsError
from rudalle_lib.storage.small_files import read_small_json, read_vocabulary
from rudalle_lib.text.translation import Translator
from rudalle_lib.weights.checkpoints import (
    check_match,
    list_tensors,
    load_state_dict,
    stored_tensors,
)
from rudalle_lib.weights.conversion import safe_file
from rudalle_lib.weights.network_sizes import check_sizes
from rudalle_lib.weights.sentencepiece_files import check_sentencepiece

if TYPE_CHECKING:
    from transformers import MarianConfig, MarianMTModel, MarianTokenizer


WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""File names of weights, in order of preference."""

EMBEDDINGS = (
    "model.shared.weight",
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "lm_head.weight",
)
"""Names of one shared tensor; a file may contain only one of them."""

COMPUTED = (
    "final_logits_bias",
    "model.encoder.embed_positions.weight",
    "model.decoder.embed_positions.weight",
)
"""Tensors that the network initialises if the file lacks them: zeros and sinusoidal tables."""


TOKENIZER_FILES = {
    "source_spm": "source.spm",
    "target_spm": "target.spm",
    "vocab": "vocab.json",
}
"""File names by arguments of `MarianTokenizer`."""

SPECIAL_PIECES = ("</s>", "<unk>", "<pad>")
"""Pieces that every vocabulary has."""

MAX_POSITIONS = 8192
"""Longest text in pieces. The table of positions is computed, slowly, in Python."""

Value = TypeVar("Value")


@dataclasses.dataclass
class MarianSizes:
    """What is read from the `config.json` of a translator, named as there."""

    vocab_size: int
    decoder_vocab_size: int | None
    max_position_embeddings: int
    encoder_layers: int
    encoder_ffn_dim: int
    encoder_attention_heads: int
    decoder_layers: int
    decoder_ffn_dim: int
    decoder_attention_heads: int
    activation_function: str
    d_model: int
    decoder_start_token_id: int
    scale_embedding: bool
    pad_token_id: int | None
    eos_token_id: int | None
    share_encoder_decoder_embeddings: bool
    tie_word_embeddings: bool


def load_marian(
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Translator:
    """Load a translator from a folder in the layout of the OPUS-MT repositories.

    Args:
        folder: contains `config.json`, `source.spm`, `target.spm`, `vocab.json`, and the weights
            as `model.safetensors` or `pytorch_model.bin`.
        device: target device.
        dtype: type of the weights.

    Raises:
        WeightsError: a file is missing or broken, or the weights do not fit the network.
    """
    tokenizer = load_tokenizer(folder)
    model = _load_model(folder, tokenizer).to(device=device, dtype=dtype)
    return Translator(model.eval().requires_grad_(False), tokenizer)


def load_tokenizer(folder: Path) -> MarianTokenizer:
    """Load a tokenizer from `source.spm`, `target.spm` and `vocab.json`.

    Raises:
        WeightsError: a file is missing or broken.
    """
    from transformers import MarianTokenizer

    _check_tokenizer(folder)
    files = {role: str(folder / name) for role, name in TOKENIZER_FILES.items()}
    try:
        with warnings.catch_warnings():
            # The warning recommends sacremoses, which the tokenizer would import but never use.
            warnings.simplefilter("ignore")
            # `Translator` rejects texts that are too long; the tokenizer would only log a warning.
            return MarianTokenizer(**files, model_max_length=2**30)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise WeightsError(
            f"cannot read the translator's vocabulary in {folder}: {error}"
        ) from error


def check_marian(folder: Path) -> None:
    """Check the files of a translator without loading it; see `load_marian`.

    Raises:
        WeightsError: a file is missing or broken.
    """
    _check_tokenizer(folder)
    _sizes(folder / "config.json")
    list_tensors(_weights(folder))


def _check_tokenizer(folder: Path) -> None:
    files = {role: folder / name for role, name in TOKENIZER_FILES.items()}
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise WeightsError(f"the translator lacks {', '.join(missing)}")
    for role, path in files.items():
        try:
            if role != "vocab":
                check_sentencepiece(path)
                continue
            ids = read_vocabulary(path)
            absent = [piece for piece in SPECIAL_PIECES if piece not in ids]
            if absent:
                raise ValueError(f"it lacks the pieces {', '.join(absent)}")
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"cannot read the translator's vocabulary in {path}: {error}"
            ) from error


def _weights(folder: Path) -> Path:
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise WeightsError(f"the translator has no weights: expected {folder / WEIGHTS[0]}")
    return found


def _sizes(source: Path) -> dict[str, Any]:
    """The sizes in a `config.json`; published files have more keys."""
    try:
        values = read_small_json(source)
        known = {field.name for field in dataclasses.fields(MarianSizes)}
        sizes = {key: value for key, value in values.items() if key in known}
        if not sizes:
            raise ValueError("it has none of the sizes of a translator")
        check_sizes(MarianSizes, sizes)
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {source}: {error}") from error
    return sizes


def _load_model(folder: Path, tokenizer: MarianTokenizer) -> MarianMTModel:
    from transformers import GenerationConfig, MarianConfig, MarianMTModel

    weights, source = _weights(folder), folder / "config.json"
    sizes = _sizes(source)
    file = safe_file(weights)
    shapes = stored_tensors(file)
    try:
        config = MarianConfig(**sizes)
        _check_ids(config, tokenizer)
        with torch.device("meta"):  # takes no memory, however large the sizes are
            expected = MarianMTModel(config).state_dict()
        check_match(expected, _with_implied(shapes, expected), weights)
        model = MarianMTModel(config)
    except (ValueError, TypeError, KeyError, RuntimeError, ArithmeticError) as error:
        raise WeightsError(f"cannot read {source}: {error}") from error
    model.load_state_dict(_with_implied(load_state_dict(file), model.state_dict()))
    # OPUS-MT's own settings use beams, and force an EOS on translations that never end, which
    # `Translator` has to detect.
    model.generation_config = GenerationConfig()
    return model


def _check_ids(config: MarianConfig, tokenizer: MarianTokenizer) -> None:
    if config.max_position_embeddings > MAX_POSITIONS:
        raise ValueError(
            f"max_position_embeddings: expected at most {MAX_POSITIONS:,}, found "
            f"{config.max_position_embeddings:,}"
        )
    special = (config.pad_token_id, config.eos_token_id, config.decoder_start_token_id)
    largest = max(*tokenizer.get_vocab().values(), *(id_ or 0 for id_ in special))
    if largest >= config.vocab_size or min(id_ or 0 for id_ in special) < 0:
        raise ValueError(
            f"the vocabulary has the id {largest:,}, but the network embeddings for "
            f"{config.vocab_size:,}"
        )


def _with_implied(state: Mapping[str, Value], expected: Mapping[str, Value]) -> dict[str, Value]:
    """Add the tensors that the file lacks."""
    computed = {name: expected[name] for name in COMPUTED if name in expected}
    shared = next((state[name] for name in EMBEDDINGS if name in state), None)
    tied = {name: shared for name in EMBEDDINGS if name in expected and shared is not None}
    return {**computed, **tied, **state}
