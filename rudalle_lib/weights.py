"""Models by name, loaded: the network with its weights, and the tokenizer that belongs to it.

Where the files come from is the business of `weight_files`, how they are read that of
`checkpoints`.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from rudalle_lib import registry
from rudalle_lib.checkpoints import (
    StateDict,
    build,
    load_state_dict,
    without_loss,
    without_masks,
)
from rudalle_lib.config import WeightsConfig
from rudalle_lib.errors import WeightsError
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.rrdbnet import RrdbNet, RrdbNetConfig
from rudalle_lib.models.ruclip import RuClip, RuClipConfig
from rudalle_lib.models.vqgan import VqGan, VqGanConfig
from rudalle_lib.registry import ModelEntry
from rudalle_lib.tokenizer import Tokenizer
from rudalle_lib.weight_files import DEFAULT, Files, resolve_files

if TYPE_CHECKING:
    from rudalle_lib.translation import Translator

Network = TypeVar("Network", bound=torch.nn.Module)
Config = TypeVar("Config")

CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class LoadedDecoder:
    """A decoder and the tokenizer of its captions."""

    model: Dalle
    tokenizer: Tokenizer
    entry: ModelEntry


@dataclasses.dataclass(frozen=True)
class LoadedVqGan:
    """A VQ-GAN."""

    model: VqGan
    entry: ModelEntry


@dataclasses.dataclass(frozen=True)
class LoadedScorer:
    """A ruCLIP and the tokenizer of its texts."""

    model: RuClip
    tokenizer: Tokenizer
    entry: ModelEntry


@dataclasses.dataclass(frozen=True)
class LoadedUpscaler:
    """A super-resolution network."""

    model: RrdbNet
    entry: ModelEntry


def load_decoder(
    name: str,
    weights: WeightsConfig = DEFAULT,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> LoadedDecoder:
    """Load a decoder by its registry name.

    Raises:
        ConfigError: no such decoder.
        WeightsError: its files cannot be had, or do not fit.
    """
    entry = registry.get(name, "decoder")
    files = resolve_files(entry, weights)
    model = _load(entry, files, Dalle, DalleConfig, device, dtype, without_masks)
    tokenizer = Tokenizer.load(files["tokenizer"])
    _check_vocabulary(tokenizer, model.config.text_vocab_size - model.config.text_length, entry)
    return LoadedDecoder(model, tokenizer, entry)


def load_vqgan(
    name: str,
    weights: WeightsConfig = DEFAULT,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> LoadedVqGan:
    """Load a VQ-GAN by its registry name; raises as `load_decoder`."""
    entry = registry.get(name, "vqgan")
    files = resolve_files(entry, weights)
    model = _load(entry, files, VqGan, VqGanConfig, device, dtype, without_loss)
    return LoadedVqGan(model, entry)


def load_scorer(
    name: str,
    weights: WeightsConfig = DEFAULT,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> LoadedScorer:
    """Load a ruCLIP by its registry name; raises as `load_decoder`."""
    entry = registry.get(name, "scorer")
    files = resolve_files(entry, weights)
    model = _load(entry, files, RuClip, RuClipConfig, device, dtype)
    tokenizer = Tokenizer.load(files["tokenizer"])
    _check_vocabulary(tokenizer, model.config.vocab_size, entry)
    return LoadedScorer(model, tokenizer, entry)


def load_upscaler(
    name: str,
    weights: WeightsConfig = DEFAULT,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> LoadedUpscaler:
    """Load a super-resolution network by its registry name; raises as `load_decoder`."""
    entry = registry.get(name, "upscaler")
    files = resolve_files(entry, weights)
    model = _load(entry, files, RrdbNet, RrdbNetConfig, device, dtype)
    return LoadedUpscaler(model, entry)


def load_translator(
    name: str,
    weights: WeightsConfig = DEFAULT,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> "Translator":
    """Load a translator by its registry name; raises as `load_decoder`."""
    from rudalle_lib.translation import Translator  # transformers takes a second to import

    entry = registry.get(name, "translator")
    files = resolve_files(entry, weights)
    return Translator.load(files["weights"].parent, device, dtype)


def _load(
    entry: ModelEntry,
    files: Files,
    network: Callable[[Any], Network],
    config: type[Any],
    device: torch.device,
    dtype: torch.dtype,
    tidy: Callable[[StateDict], StateDict] = lambda state: state,
) -> Network:
    settings = _config(entry, files, config)

    def make() -> Network:
        try:
            return network(settings)
        except (TypeError, ValueError, RuntimeError) as error:
            source = files.get("config", "the registry")
            raise WeightsError(
                f"{entry.name} cannot be built as {source} says: {error}; {settings}"
            ) from error

    state = tidy(load_state_dict(files["weights"]))
    return build(make, state, files["weights"], device, dtype)


def _config(entry: ModelEntry, files: Files, config: type[Config]) -> Config:
    """The configuration of the network: from the model's own file if it has one."""
    source = files.get("config")
    if source is None:
        return config(**entry.architecture)
    try:
        values = json.loads(source.read_text("utf-8"))
        known = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
        # The published files may say more, such as the class that wrote them.
        given = {key: value for key, value in values.items() if key in known}
        return config(**{key: _tuple(value) for key, value in given.items()})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{source} does not describe a {entry.kind}: {error}; expected a JSON object with "
            f"the sizes of {entry.name}"
        ) from error


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_vocabulary(tokenizer: Tokenizer, expected: int, entry: ModelEntry) -> None:
    if tokenizer.vocab_size > expected:
        raise WeightsError(
            f"the tokenizer of {entry.name} has {tokenizer.vocab_size} pieces, its network knows "
            f"{expected}; the bpe.model does not belong to these weights"
        )
