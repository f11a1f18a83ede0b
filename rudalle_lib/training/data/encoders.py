"""What images and captions become for each kind of network that is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from rudalle_lib.config.fine_tune import FineTuneConfig, Trained
from rudalle_lib.generation.image_prompts import fit
from rudalle_lib.images.codecs import to_floats
from rudalle_lib.images.scoring import to_square
from rudalle_lib.models.dalle import DalleConfig
from rudalle_lib.models.layers.one_by_one import one_by_one
from rudalle_lib.models.ruclip import RuClipConfig
from rudalle_lib.models.ruclip_small import RuClipSmallConfig
from rudalle_lib.models.vqgan import VqGan, VqGanConfig
from rudalle_lib.runtime.batching import FixedRows
from rudalle_lib.text.gpt2_tokenizer import Gpt2Tokenizer
from rudalle_lib.text.tokenizer import EncodedText, Tokenizer
from rudalle_lib.training.data.rejects import RejectedError
from rudalle_lib.weights.digest_cache import file_digest
from rudalle_lib.weights.files import digest, resolve_files
from rudalle_lib.weights.loading import load_vqgan, network_config

CPU = torch.device("cpu")

PIXELS = pa.large_binary()
"""Type of images that are kept as they are: the bytes of uint8 [3, H, W]."""


@dataclass(frozen=True)
class Encoder:
    """How rows become what a network learns from.

    Attributes:
        trains: the kind of network.
        height: of an image in pixels.
        width: of an image in pixels.
        text_length: ids of a caption; 0 if the network reads none.
        identity: what else the encoded rows depend on, as JSON: digests of tokenizer and VQ-GAN.
        resize: any image uint8 [3, H, W] to uint8 [3, height, width].
        encode_text: a caption to ids; None if the network reads none.
        image_type: of the values in the column of encoded images.
        encode_images: uint8 [B, 3, height, width] to a column with B values.
    """

    trains: Trained
    height: int
    width: int
    text_length: int
    identity: dict[str, Any]
    resize: Callable[[Tensor], Tensor]
    encode_text: Callable[[str], EncodedText] | None
    image_type: pa.DataType
    encode_images: Callable[[Tensor], pa.Array]

    @property
    def tokens(self) -> int:
        """Tokens per image; 0 if images are kept as they are."""
        return 0 if self.image_type == PIXELS else int(self.image_type.list_size)

    def ids_of(self, caption: str, long_captions: str) -> list[int] | None:
        """The ids of a caption; None if the network reads none.

        Raises:
            RejectedError: it is too long, and is not to be truncated.
        """
        if self.encode_text is None:
            return None
        text = self.encode_text(caption)
        if text.truncated and long_captions == "reject":
            detail = f"the caption is longer than the {self.text_length} ids that are read"
            raise RejectedError("long_caption", detail)
        return text.ids

    def image_of(self, image: Tensor, exact: bool) -> Tensor:
        """An image of any size, uint8 [3, H, W], as the network reads it.

        Raises:
            RejectedError: it has another size, and must have this one.
        """
        height, width = image.shape[1:]
        if exact and (height, width) != (self.height, self.width):
            detail = f"expected {self.width} x {self.height} pixels, found {width} x {height}"
            raise RejectedError("wrong_size", detail)
        return self.resize(image)


def make_encoder(config: FineTuneConfig, device: torch.device = CPU) -> Encoder:
    """The encoder for the network of a fine-tuning; a VQ-GAN is loaded when it is first needed.

    Args:
        config: the fine-tuning.
        device: of the VQ-GAN.

    Raises:
        ConfigError: there is no such network.
        WeightsError: its files are missing or damaged.
    """
    makers = {"decoder": _for_decoder, "vqgan": _for_vqgan, "scorer": _for_scorer}
    return makers[config.trains](config, device)


def _for_decoder(config: FineTuneConfig, device: torch.device) -> Encoder:
    entry = config.weights.find(config.base_model, "decoder")
    files = resolve_files(entry, config.weights)
    sizes = network_config(entry, files, DalleConfig)
    tokenizer = Tokenizer.load(files["tokenizer"])
    vqgan_entry = config.weights.find(config.vqgan, "vqgan")
    vqgan_files = resolve_files(vqgan_entry, config.weights)
    side = network_config(vqgan_entry, vqgan_files, VqGanConfig).downsampling
    height, width = sizes.image_height * side, sizes.image_width * side
    return Encoder(
        config.trains, height, width, sizes.text_length,
        {
            "tokenizer": file_digest(files["tokenizer"]),
            "vqgan": digest(vqgan_entry, vqgan_files),
        },
        partial(fit, height=height, width=width),
        lambda caption: tokenizer.encode_text(caption, sizes.text_length),
        pa.list_(pa.int32(), sizes.image_length),
        _Tokens(config, device),
    )  # fmt: skip


class _Tokens:
    """Encodes images as tokens of a VQ-GAN, which is loaded once."""

    def __init__(self, config: FineTuneConfig, device: torch.device) -> None:
        self._config = config
        self._device = device
        self._vqgan: VqGan | None = None
        self._rows = FixedRows(config.encoding.batch_size)

    def __call__(self, images: Tensor) -> pa.Array:
        """uint8 [B, 3, H, W] to lists of h * w tokens, row by row."""
        if self._vqgan is None:
            config = self._config
            self._vqgan = load_vqgan(config.vqgan, config.weights, self._device).model
        pixels = to_floats(images.to(self._device), -1.0, 1.0)
        tokens = self._rows.apply(partial(one_by_one, self._vqgan.encode), pixels)
        values = tokens.flatten(1).int().cpu().numpy()
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _for_vqgan(config: FineTuneConfig, device: torch.device) -> Encoder:
    entry = config.weights.find(config.base_model, "vqgan")
    sizes = network_config(entry, resolve_files(entry, config.weights), VqGanConfig)
    side = sizes.resolution
    resize = partial(fit, height=side, width=side)
    return Encoder(config.trains, side, side, 0, {}, resize, None, PIXELS, _pixels)


def _for_scorer(config: FineTuneConfig, device: torch.device) -> Encoder:
    entry = config.weights.find(config.base_model, "scorer")
    files = resolve_files(entry, config.weights)
    sizes: RuClipConfig | RuClipSmallConfig
    roles: tuple[str, ...]
    if "merges" in files:  # the tokenizer of GPT-2
        sizes = network_config(entry, files, RuClipSmallConfig)
        small = Gpt2Tokenizer.load(files["vocabulary"], files["merges"])
        encode = partial(small.encode_clip, length=sizes.context_length)
        roles = ("vocabulary", "merges")
    else:
        sizes = network_config(entry, files, RuClipConfig)
        tokenizer = Tokenizer.load(files["tokenizer"])
        encode = partial(tokenizer.encode_clip, length=sizes.context_length)
        roles = ("tokenizer",)
    side = sizes.image_resolution
    identity = {role: file_digest(files[role]) for role in roles}
    return Encoder(
        config.trains, side, side, sizes.context_length, identity,
        lambda image: to_square(image[None], sizes)[0], encode, PIXELS, _pixels,
    )  # fmt: skip


def _pixels(images: Tensor) -> pa.Array:
    """Images as they are: uint8 [B, 3, H, W] to the bytes of each, channel by channel."""
    return pa.array([image.tobytes() for image in images.numpy()], PIXELS)
