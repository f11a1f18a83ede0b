"""A tiny Kandinsky with all 64 layers: in 8 bits, and with its layers on several devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import nn

from rudalle_lib import registry
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.generation.sampling import SamplingSettings, generate_tokens
from rudalle_lib.models.dalle import Dalle, DalleConfig, device_of_tensor
from rudalle_lib.models.decoding.cached_decoder import CachedDecoder
from rudalle_lib.models.layers.amx_linear import AmxInt8Linear
from rudalle_lib.models.layers.int8_dynamic_linear import (
    DynamicInt8Linear,
    use_dynamic_int8_linears,
)
from rudalle_lib.models.layers.int8_linear import Int8Linear, use_int8_linears
from rudalle_lib.models.layers.vector_linear import VectorInt8Linear
from rudalle_lib.runtime.devices import can_multiply_int8
from rudalle_lib.weights.checkpoints import build
from rudalle_lib.weights.loading import load_decoder
from tests.support.tiny_stack import letters_as_bpe

NAME = "kandinsky-12b"
CPU, META = torch.device("cpu"), torch.device("meta")
SMALL: dict[str, Any] = dict(
    num_layers=64, hidden_size=32, num_heads=4, text_vocab_size=200, text_length=8,
    image_vocab_size=32, image_height=4, image_width=4,
)  # fmt: skip
CONFIG = DalleConfig(**SMALL)
needs_int8 = pytest.mark.skipif(
    not can_multiply_int8(), reason="neither VNNI nor the compiled kernels"
)
DYNAMIC = pytest.param(torch.qint8, marks=needs_int8)


@pytest.fixture(scope="module")
def float_model() -> Dalle:
    torch.manual_seed(0)
    model = Dalle(CONFIG)
    model.init_weights(weight_std=0.2, embedding_std=0.5, position_std=0.3, branch_gain=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def weights(
    float_model: Dalle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WeightsConfig]:
    """Files as they are published: half precision, the tokenizer in another repository."""
    folder = tmp_path_factory.mktemp("weights")
    for part in ("rudalle-Kandinsky", "rudalle-utils"):
        (folder / part).mkdir()
    state = {name: tensor.half() for name, tensor in float_model.state_dict().items()}
    torch.save(state, folder / "rudalle-Kandinsky" / "pytorch_model.bin")
    (folder / "rudalle-utils" / "bpe.model").write_text(letters_as_bpe(), "utf-8")
    entry = registry.get(NAME)
    small = dataclasses.replace(entry, architecture=MappingProxyType({**SMALL, "version": "v3"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_ENTRIES", {**registry._ENTRIES, NAME: small})
        yield WeightsConfig(folder=str(folder))


def tokens_for(images: int) -> torch.Tensor:
    torch.manual_seed(1)
    text = torch.randint(1, 190, (images, CONFIG.text_length))
    return torch.cat((text, torch.randint(0, 32, (images, 16))), dim=1)


def int8_model(state: dict[str, torch.Tensor], dtype: torch.dtype) -> Dalle:
    def make() -> Dalle:
        dalle = Dalle(CONFIG)
        use_int8_linears(dalle.transformer)
        return dalle

    model = build(make, state, Path("x"), CPU, torch.float32)
    if dtype is torch.qint8:
        use_dynamic_int8_linears(model.transformer)
    return model


@pytest.mark.parametrize("dtype", [torch.int8, DYNAMIC])
@torch.inference_mode()
def test_8_bit_layers_are_close_to_float(float_model: Dalle, dtype: torch.dtype) -> None:
    tokens = tokens_for(4)
    model = int8_model(float_model.state_dict(), dtype)
    expected, found = float_model(tokens), model(tokens)
    assert (found - expected).abs().mean() < 0.03 * expected.std()
    # The layers are really rounded.
    assert not torch.equal(found, expected)


def test_the_loader_quantises_only_layers(float_model: Dalle, weights: WeightsConfig) -> None:
    model = load_decoder(NAME, weights, dtype=torch.int8).model
    stored = model.state_dict()
    in_eight = {name for name, tensor in stored.items() if tensor.dtype is torch.int8}
    assert len(in_eight) == 64 * 4
    assert all(name.startswith("transformer.layers.") for name in in_eight)
    others = {t.dtype for n, t in stored.items() if n not in in_eight and not n.endswith("scale")}
    assert others == {torch.bfloat16}
    name = "transformer.layers.63.mlp.dense_h_to_4h"
    layer = model.get_submodule(name)
    assert isinstance(layer, Int8Linear)
    widened = layer.weight * layer.scale[:, None]
    original = float_model.get_submodule(name)
    assert isinstance(original, nn.Linear)
    error = (widened - original.weight).abs().max()
    assert error < 0.006 * original.weight.abs().max()


@needs_int8
@torch.inference_mode()
def test_the_loader_computes_all_layers_in_8_bits(weights: WeightsConfig) -> None:
    model = load_decoder(NAME, weights, dtype=torch.qint8).model
    kinds = (DynamicInt8Linear, AmxInt8Linear, VectorInt8Linear)
    layers = [part for part in model.modules() if isinstance(part, kinds)]
    assert len(layers) == 64 * 4
    tokens = tokens_for(2)
    expected = load_decoder(NAME, weights, dtype=torch.int8).model(tokens)
    assert (model(tokens) - expected).abs().mean() < 0.03 * expected.float().std()


def draw(model: Dalle) -> torch.Tensor:
    text = tokens_for(2)[:, : CONFIG.text_length].clamp(max=190)
    prompt_of, seeds = torch.tensor([0, 0, 1, 1, 1]), torch.arange(5)
    settings = SamplingSettings(top_k=0, top_p=1.0)
    return generate_tokens(model, text, prompt_of, seeds, settings, batch_size=5).tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, DYNAMIC])
def test_a_split_decoder_draws_the_same_tokens(weights: WeightsConfig, dtype: torch.dtype) -> None:
    whole = load_decoder(NAME, weights, CPU, dtype).model
    split = load_decoder(NAME, weights, (CPU, CPU), dtype).model
    assert torch.equal(draw(split), draw(whole))


def test_each_device_has_consecutive_layers_and_the_first_has_the_rest() -> None:
    devices = [torch.device("cuda", index) for index in range(3)]
    layers = [
        device_of_tensor(f"transformer.layers.{index}.mlp.bias", 64, devices).index
        for index in range(64)
    ]
    assert layers == sorted(layers)
    assert [layers.count(index) for index in range(3)] == [22, 21, 21]
    for name in (
        "text_embeddings.weight",
        "to_logits.1.weight",
        "transformer.final_layernorm.bias",
    ):
        assert device_of_tensor(name, 64, devices) == devices[0]


@torch.inference_mode()
def test_tensors_are_moved_from_device_to_device() -> None:
    """The last layers are on the meta device, which cannot compute with tensors of the CPU.

    Row and column attention occur among both the first three and the last four of the seven layers;
    the last layer has convolutional attention.
    """
    model = Dalle(DalleConfig(**{**SMALL, "num_layers": 7}))
    for layer in model.transformer.layers[3:]:
        layer.to(META)
    model.transformer.final_layernorm.to(META)  # no tensor comes back from there
    model.to_logits.to(META)
    text, prompt_of = tokens_for(3)[:, : CONFIG.text_length], torch.tensor([0, 1, 1, 2])
    for unguided in (0, 1):
        decoder = CachedDecoder(model, text, prompt_of, unguided)
        assert decoder.prefill().device == META
        for token in range(3):
            assert decoder.decode_one_token(torch.full((4,), token)).shape == (4, 32)
    assert model(tokens_for(2)).device == META
