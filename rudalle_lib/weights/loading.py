"""Load models by name: a network with its weights, and its tokenizer if it has one.

`files` finds the weights files, `checkpoints` reads them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.errors import WeightsError
from rudalle_lib.models.dalle import Dalle, DalleConfig, device_of_tensor
from rudalle_lib.models.efficient_unet import EfficientUnet, EfficientUnetConfig
from rudalle_lib.models.layers.fused_layer_norm import use_fused_layer_norms
from rudalle_lib.models.layers.int8_dynamic_linear import use_dynamic_int8_linears
from rudalle_lib.models.layers.int8_linear import use_int8_linears
from rudalle_lib.models.layers.onednn_linear import use_fastest_linears
from rudalle_lib.models.rrdbnet import RrdbNet, RrdbNetConfig
from rudalle_lib.models.ruclip import RuClip, RuClipConfig, optimize_for_inference
from rudalle_lib.models.ruclip_small import RuClipSmall, RuClipSmallConfig
from rudalle_lib.models.vqgan import VqGan, VqGanConfig
from rudalle_lib.registry import ModelEntry
from rudalle_lib.runtime.devices import INT8_DTYPES, compute_dtype
from rudalle_lib.runtime.reproducibility import make_reproducible
from rudalle_lib.storage.small_files import read_small_json
from rudalle_lib.text.gpt2_tokenizer import Gpt2Tokenizer
from rudalle_lib.text.tokenizer import Tokenizer
from rudalle_lib.weights.checkpoints import (
    LazyTensor,
    build,
    stored_tensors,
    without_classifier,
    without_gpt2_masks,
    without_loss,
    without_masks,
)
from rudalle_lib.weights.conversion import safe_file
from rudalle_lib.weights.files import DEFAULT_WEIGHTS, Files, resolve_files
from rudalle_lib.weights.network_sizes import check_sizes

if TYPE_CHECKING:
    from rudalle_lib.text.translation import Translator

Network = TypeVar("Network", bound=torch.nn.Module)
TextTokenizer = TypeVar("TextTokenizer")
Config = TypeVar("Config")

LazyTensors = dict[str, LazyTensor]
"""The tensors of a checkpoint by name, not read from their file yet."""

CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Loaded(Generic[Network]):
    """A network ready for inference, and its registry entry."""

    model: Network
    entry: ModelEntry


@dataclasses.dataclass(frozen=True)
class LoadedWithTokenizer(Loaded[Network], Generic[Network, TextTokenizer]):
    """A network that reads text, and the tokenizer that it was trained with."""

    tokenizer: TextTokenizer


LoadedDecoder = LoadedWithTokenizer[Dalle, Tokenizer]
"""A decoder and the tokenizer of its captions."""

LoadedVqGan = Loaded[VqGan]
"""A VQ-GAN."""

LoadedScorer = LoadedWithTokenizer[RuClip | RuClipSmall, Tokenizer | Gpt2Tokenizer]
"""A ruCLIP and the tokenizer of its texts."""

LoadedUpscaler = Loaded[RrdbNet]
"""A super-resolution network."""

LoadedSegmenter = Loaded[EfficientUnet]
"""A segmentation network."""


def load_decoder(
    name: str,
    weights: WeightsConfig = DEFAULT_WEIGHTS,
    device: torch.device | Sequence[torch.device] = CPU,
    dtype: torch.dtype = torch.float32,
    packed: bool = True,
) -> LoadedDecoder:
    """Load a decoder for inference.

    Args:
        name: name of the decoder.
        weights: where its files come from.
        device: target device. If there are several, each gets a contiguous range of layers.
        dtype: type of the weights. int8 stores the weights of linear layers in 8 bits and computes
            in bfloat16, or in float16 on GPUs without bfloat16. qint8 also multiplies in 8 bits.
        packed: use inference-only layouts of linear layers where they are faster. Such layers
            cannot be trained.

    Raises:
        ConfigError: there is no such decoder.
        WeightsError: its files are missing, cannot be read, or do not fit its network.
    """
    entry = weights.find(name, "decoder")
    files = resolve_files(entry, weights)
    devices = [device] if isinstance(device, torch.device) else list(device)
    make_reproducible(devices)

    def network(config: DalleConfig) -> Dalle:
        decoder = Dalle(config)
        if dtype in INT8_DTYPES:
            use_int8_linears(decoder.transformer)
        return decoder

    def place(tensor: str) -> torch.device:
        return device_of_tensor(tensor, config.num_layers, devices)

    config = network_config(entry, files, DalleConfig)
    compute_in = compute_dtype(dtype, devices[0])
    model = _load(entry, files, network, config, place, compute_in, without_masks)
    if dtype is torch.qint8:
        use_dynamic_int8_linears(model.transformer)
    if packed:
        use_fastest_linears(model.transformer)
        use_fused_layer_norms(model.transformer)
    tokenizer = Tokenizer.load(files["tokenizer"])
    _check_vocabulary(tokenizer, model.config.text_vocab_size - model.config.text_length, entry)
    return LoadedWithTokenizer(model, entry, tokenizer)


def load_vqgan(
    name: str,
    weights: WeightsConfig = DEFAULT_WEIGHTS,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> LoadedVqGan:
    """Load a VQ-GAN for inference.

    Args:
        name: name of the VQ-GAN.
        weights: where its files come from.
        device: target device.
        dtype: type in which images are decoded; see `VqGan.use_dtype`.

    Raises:
        ConfigError: there is no such VQ-GAN.
        WeightsError: its files are missing, cannot be read, or do not fit its network.
    """
    entry = weights.find(name, "vqgan")
    files = resolve_files(entry, weights)
    config = network_config(entry, files, VqGanConfig)
    model = _load(entry, files, VqGan, config, device, torch.float32, without_loss)
    model.use_dtype(dtype)
    return Loaded(model, entry)


def load_scorer(
    name: str,
    weights: WeightsConfig = DEFAULT_WEIGHTS,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    packed: bool = True,
) -> LoadedScorer:
    """Load a ruCLIP or ruCLIP Small for inference.

    Args:
        name: name of the scorer.
        weights: where its files come from.
        device: target device.
        dtype: type of the weights.
        packed: as in `load_decoder`.

    Raises:
        ConfigError: there is no such scorer.
        WeightsError: its files are missing, cannot be read, or do not fit its network.
    """
    entry = weights.find(name, "scorer")
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
    if packed:
        optimize_for_inference(model)
    return LoadedWithTokenizer(model, entry, tokenizer)


def load_upscaler(
    name: str,
    weights: WeightsConfig = DEFAULT_WEIGHTS,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> LoadedUpscaler:
    """Load a super-resolution network for inference.

    Args:
        name: name of the upscaler.
        weights: where its files come from.
        device: target device.
        dtype: type in which the network computes; see `RrdbNet.use_dtype`.

    Raises:
        ConfigError: there is no such upscaler.
        WeightsError: its files are missing, cannot be read, or do not fit its network.
    """
    entry = weights.find(name, "upscaler")
    files = resolve_files(entry, weights)
    config = network_config(entry, files, RrdbNetConfig)
    model = _load(entry, files, RrdbNet, config, device, torch.float32)
    model.use_dtype(dtype)
    return Loaded(model, entry)


def load_segmenter(
    name: str,
    weights: WeightsConfig = DEFAULT_WEIGHTS,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> LoadedSegmenter:
    """Load a segmentation network for inference.

    Args:
        name: name of the segmenter.
        weights: where its files come from.
        device: target device.
        dtype: type of the weights.

    Raises:
        ConfigError: there is no such segmenter.
        WeightsError: its files are missing, cannot be read, or do not fit its network.
    """
    entry = weights.find(name, "segmenter")
    files = resolve_files(entry, weights)
    config = network_config(entry, files, EfficientUnetConfig)
    model = _load(entry, files, EfficientUnet, config, device, dtype, without_classifier)
    return Loaded(model, entry)


def load_translator(
    name: str,
    weights: WeightsConfig = DEFAULT_WEIGHTS,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> Translator:
    """Load a translator for inference.

    Args:
        name: name of the translator.
        weights: where its files come from.
        device: target device.
        dtype: type of the weights.

    Raises:
        ConfigError: there is no such translator.
        WeightsError: its files are missing, cannot be read, or do not fit its network.
    """
    from rudalle_lib.weights.marian import load_marian  # transformers takes a second to import

    entry = weights.find(name, "translator")
    files = resolve_files(entry, weights)
    make_reproducible([device])
    return load_marian(files["weights"].parent, device, dtype)


def _load(
    entry: ModelEntry,
    files: Files,
    network: Callable[[Config], Network],
    config: Config,
    device: torch.device | Callable[[str], torch.device],
    dtype: torch.dtype,
    clean: Callable[[LazyTensors], LazyTensors] = lambda state: state,
) -> Network:
    if isinstance(device, torch.device):
        make_reproducible([device])
    state = clean(dict(stored_tensors(safe_file(files["weights"]))))
    return build(
        lambda: make_network(entry, files, network, config), state, files["weights"], device, dtype
    )


def make_network(
    entry: ModelEntry, files: Files, network: Callable[[Config], Network], config: Config
) -> Network:
    """Build a network, with initial weights on the current device.

    Raises:
        WeightsError: the sizes in the configuration do not fit together.
    """
    try:
        return network(config)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, IndexError) as error:
        source = files.get("config", "the registry")
        raise WeightsError(
            f"cannot build {entry.name} from the sizes in {source}: {error}; found {config}"
        ) from error


def network_config(entry: ModelEntry, files: Files, config: type[Config]) -> Config:
    """The configuration of a model's network: from its `config.json` if the model has one.

    Keys of the file take precedence over the registry. Keys that `config` lacks are ignored.

    Raises:
        WeightsError: the file does not describe such a network.
    """
    source = files.get("config")
    if source is None:
        return config(**entry.architecture)
    try:
        values = read_small_json(source)
        known = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
        # Published files have more keys, such as the class that wrote them.
        from_file = {key: _tuple(value) for key, value in values.items() if key in known}
        if values and not from_file:
            raise ValueError("it has none of the sizes")
        check_sizes(config, from_file)
        return config(**{**entry.architecture, **from_file})
    except (OSError, ValueError, TypeError, ArithmeticError) as error:
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
            f"the tokenizer of {entry.name} has {tokenizer.vocab_size} pieces, but its network has "
            f"embeddings for {expected}; the tokenizer does not belong to these weights"
        )
