"""Models by name, loaded: the network with its weights, and the tokenizer that belongs to it.

Where the files come from is the business of `weight_files`, how they are read that of
`checkpoints`.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from rudalle_lib import registry
from rudalle_lib.checkpoints import (
    Unread,
    build,
    stored_tensors,
    without_classifier,
    without_gpt2_masks,
    without_loss,
    without_masks,
)
from rudalle_lib.config import WeightsConfig
from rudalle_lib.conversion import safe_file
from rudalle_lib.devices import IN_8_BITS, compute_dtype
from rudalle_lib.errors import WeightsError
from rudalle_lib.gpt2_tokenizer import Gpt2Tokenizer
from rudalle_lib.models.compiled_layer_norm import with_compiled_norms
from rudalle_lib.models.dalle import Dalle, DalleConfig, device_of_tensor
from rudalle_lib.models.dynamic_int8_linear import with_dynamic_int8_linears
from rudalle_lib.models.efficient_unet import EfficientUnet, EfficientUnetConfig
from rudalle_lib.models.int8_linear import with_int8_linears
from rudalle_lib.models.packed_linear import with_packed_linears
from rudalle_lib.models.rrdbnet import RrdbNet, RrdbNetConfig
from rudalle_lib.models.ruclip import RuClip, RuClipConfig, pack
from rudalle_lib.models.ruclip_small import RuClipSmall, RuClipSmallConfig
from rudalle_lib.models.vqgan import VqGan, VqGanConfig
from rudalle_lib.registry import ModelEntry
from rudalle_lib.tokenizer import Tokenizer
from rudalle_lib.weight_files import DEFAULT, Files, resolve_files

if TYPE_CHECKING:
    from rudalle_lib.translation import Translator

Network = TypeVar("Network", bound=torch.nn.Module)
Config = TypeVar("Config")

Unfinished = dict[str, Unread]
"""The tensors of a checkpoint by name, still in their file."""

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

    model: RuClip | RuClipSmall
    tokenizer: Tokenizer | Gpt2Tokenizer
    entry: ModelEntry


@dataclasses.dataclass(frozen=True)
class LoadedUpscaler:
    """A super-resolution network."""

    model: RrdbNet
    entry: ModelEntry


@dataclasses.dataclass(frozen=True)
class LoadedSegmenter:
    """A segmentation network."""

    model: EfficientUnet
    entry: ModelEntry


def load_decoder(
    name: str,
    weights: WeightsConfig = DEFAULT,
    device: torch.device | Sequence[torch.device] = CPU,
    dtype: torch.dtype = torch.float32,
    packed: bool = True,
) -> LoadedDecoder:
    """Load a decoder by its registry name, for inference.

    Args:
        name: of the model.
        weights: where its files come from.
        device: where it goes; of several devices, each gets a run of its layers.
        dtype: of its weights; int8 stores those of its layers in 8 bits and computes in bfloat16,
            or in what else the device can do; qint8 also multiplies in 8 bits, on a CPU.
        packed: lay linear layers out for inference, where that is faster; they cannot learn then.

    Raises:
        ConfigError: no such decoder.
        WeightsError: its files cannot be had, or do not fit.
    """
    entry = registry.get(name, "decoder")
    files = resolve_files(entry, weights)
    devices = [device] if isinstance(device, torch.device) else list(device)

    def network(config: DalleConfig) -> Dalle:
        made = Dalle(config)
        if dtype in IN_8_BITS:
            with_int8_linears(made.transformer)
        return made

    def place(tensor: str) -> torch.device:
        return device_of_tensor(tensor, config.num_layers, devices)

    config = network_config(entry, files, DalleConfig)
    computed = compute_dtype(dtype, devices[0])
    model = _load(entry, files, network, config, place, computed, without_masks)
    if dtype is torch.qint8:
        with_dynamic_int8_linears(model.transformer)
    if packed:
        with_packed_linears(model.transformer)
        with_compiled_norms(model.transformer)
    tokenizer = Tokenizer.load(files["tokenizer"])
    _check_vocabulary(tokenizer, model.config.text_vocab_size - model.config.text_length, entry)
    return LoadedDecoder(model, tokenizer, entry)


def load_vqgan(
    name: str,
    weights: WeightsConfig = DEFAULT,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> LoadedVqGan:
    """Load a VQ-GAN by its registry name; raises as `load_decoder`.

    `dtype` is what pictures are decoded in; see `VqGan.use_dtype`.
    """
    entry = registry.get(name, "vqgan")
    files = resolve_files(entry, weights)
    config = network_config(entry, files, VqGanConfig)
    model = _load(entry, files, VqGan, config, device, torch.float32, without_loss)
    model.use_dtype(dtype)
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
    model: RuClip | RuClipSmall
    tokenizer: Tokenizer | Gpt2Tokenizer
    if "merges" in files:  # the tokenizer of GPT-2
        small = network_config(entry, files, RuClipSmallConfig)
        model = _load(entry, files, RuClipSmall, small, device, dtype, without_gpt2_masks)
        tokenizer = Gpt2Tokenizer.load(files["vocabulary"], files["merges"])
    else:
        config = network_config(entry, files, RuClipConfig)
        model = _load(entry, files, RuClip, config, device, dtype)
        tokenizer = Tokenizer.load(files["tokenizer"])
    _check_vocabulary(tokenizer, model.config.vocab_size, entry)
    pack(model)
    return LoadedScorer(model, tokenizer, entry)


def load_upscaler(
    name: str,
    weights: WeightsConfig = DEFAULT,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> LoadedUpscaler:
    """Load a super-resolution network by its registry name; raises as `load_decoder`.

    `dtype` is what it works in; see `RrdbNet.use_dtype`.
    """
    entry = registry.get(name, "upscaler")
    files = resolve_files(entry, weights)
    config = network_config(entry, files, RrdbNetConfig)
    model = _load(entry, files, RrdbNet, config, device, torch.float32)
    model.use_dtype(dtype)
    return LoadedUpscaler(model, entry)


def load_segmenter(
    name: str,
    weights: WeightsConfig = DEFAULT,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> LoadedSegmenter:
    """Load a segmentation network by its registry name; raises as `load_decoder`."""
    entry = registry.get(name, "segmenter")
    files = resolve_files(entry, weights)
    config = network_config(entry, files, EfficientUnetConfig)
    model = _load(entry, files, EfficientUnet, config, device, dtype, without_classifier)
    return LoadedSegmenter(model, entry)


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
    network: Callable[[Config], Network],
    config: Config,
    device: torch.device | Callable[[str], torch.device],
    dtype: torch.dtype,
    tidy: Callable[[Unfinished], Unfinished] = lambda state: state,
) -> Network:
    def make() -> Network:
        try:
            return network(config)
        except (TypeError, ValueError, RuntimeError) as error:
            source = files.get("config", "the registry")
            raise WeightsError(
                f"{entry.name} cannot be built as {source} says: {error}; {config}"
            ) from error

    state = tidy(dict(stored_tensors(safe_file(files["weights"]))))
    return build(make, state, files["weights"], device, dtype)


def network_config(entry: ModelEntry, files: Files, config: type[Config]) -> Config:
    """The configuration of a model's network: from the model's own file if it has one.

    Raises:
        WeightsError: that file does not describe such a network.
    """
    source = files.get("config")
    if source is None:
        return config(**entry.architecture)
    try:
        values = json.loads(source.read_text("utf-8"))
        known = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
        # The published files may say more, such as the class that wrote them.
        given = {key: _tuple(value) for key, value in values.items() if key in known}
        return config(**{**entry.architecture, **given})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{source} does not describe a {entry.kind}: {error}; expected a JSON object with "
            f"the sizes of {entry.name}"
        ) from error


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_vocabulary(
    tokenizer: Tokenizer | Gpt2Tokenizer, expected: int, entry: ModelEntry
) -> None:
    if tokenizer.vocab_size > expected:
        raise WeightsError(
            f"the tokenizer of {entry.name} has {tokenizer.vocab_size} pieces, its network knows "
            f"{expected}; it does not belong to these weights"
        )
