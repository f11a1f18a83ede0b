"""All layers in one compiled call compute what they compute in separate calls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rudalle_lib import kernels
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.decoding.cached_decoder import CachedDecoder
from rudalle_lib.models.decoding.fused_step import FusedStep
from rudalle_lib.models.layers import int8_dynamic_linear, onednn_linear
from rudalle_lib.models.layers.fused_layer_norm import FusedLayerNorm, use_fused_layer_norms
from rudalle_lib.models.layers.int8_dynamic_linear import use_dynamic_int8_linears
from rudalle_lib.models.layers.onednn_linear import use_fastest_linears
from rudalle_lib.models.layers.replace import replace_layers
from rudalle_lib.models.layers.vector_linear import VectorInt8Linear, VectorLinear
from tests.support.compiled import needs_compiler
from tests.support.linear_layers import to_int8_linear

pytestmark = [needs_compiler, pytest.mark.usefixtures("amx")]

PROMPT_OF = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1])


def build(dtype: torch.dtype, version: str = "v3", sandwich: bool = True) -> Dalle:
    torch.manual_seed(0)
    config = DalleConfig(6, 64, 2, 60, 32, 32, 4, 3, version, sandwich_norm=sandwich)
    model = Dalle(config)
    model.init_weights(0.15, 0.5, 0.3, 0.7)
    model = model.bfloat16().eval()
    if dtype is torch.qint8:
        replace_layers(model.transformer, nn.Linear, to_int8_linear)
        use_dynamic_int8_linears(model.transformer)
    use_fastest_linears(model.transformer)
    use_fused_layer_norms(model.transformer)
    return model


def logits(model: Dalle, fused: bool) -> Tensor:
    text = torch.arange(64).view(2, 32) % 28
    decoder = CachedDecoder(model, text, PROMPT_OF)
    if not fused:
        vars(decoder)["_fused_step"] = None
    tokens = torch.arange(len(PROMPT_OF) * 11).view(11, -1) * 7 % 32
    steps = [decoder.prefill().clone()]
    steps += [decoder.decode_one_token(token).clone() for token in tokens]
    assert isinstance(decoder._fused_step, FusedStep) is fused
    return torch.stack(steps)


@pytest.mark.parametrize("version", ["v2", "v3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.qint8])
@torch.inference_mode()
def test_logits_equal_those_of_separate_layers(dtype: torch.dtype, version: str) -> None:
    model = build(dtype, version)
    expected = logits(model, fused=False)
    assert expected.isfinite().all() and expected.std() > 0.1
    assert torch.equal(logits(model, fused=True), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.qint8])
@torch.inference_mode()
def test_layers_with_vectors_run_in_one_call_too(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a CPU with AVX2 and nothing faster."""
    monkeypatch.setattr(kernels, "has_amx", lambda: False)
    monkeypatch.setattr(onednn_linear, "can_use_onednn", lambda _: False)
    monkeypatch.setattr(int8_dynamic_linear, "has_vnni", lambda: False)
    model = build(dtype)
    kinds = {type(part) for part in model.transformer.modules() if not list(part.children())}
    linear = VectorLinear if dtype is torch.bfloat16 else VectorInt8Linear
    assert kinds == {linear, FusedLayerNorm}
    expected = logits(model, fused=False)
    assert expected.isfinite().all() and expected.std() > 0.1
    assert torch.equal(logits(model, fused=True), expected)


@torch.inference_mode()
def test_two_batches_of_one_model_are_independent() -> None:
    model = build(torch.bfloat16)
    text = torch.arange(64).view(2, 32) % 28
    first, second = (CachedDecoder(model, text, images) for images in (PROMPT_OF, PROMPT_OF[:3]))
    first.prefill(), second.prefill()
    token = torch.arange(len(PROMPT_OF))
    expected = first.decode_one_token(token).clone()
    second.decode_one_token(token[:3] + 5)
    alone = CachedDecoder(model, text, PROMPT_OF)
    alone.prefill()
    assert torch.equal(alone.decode_one_token(token), expected)
    assert torch.equal(first.decode_one_token(token), alone.decode_one_token(token))


@torch.inference_mode()
def test_layers_run_separately_if_a_part_is_not_compiled() -> None:
    model = build(torch.bfloat16, sandwich=False)
    decoder = CachedDecoder(model, torch.ones(1, 32).long(), torch.zeros(3).long())
    assert decoder.prefill().isfinite().all() and decoder._fused_step is None
    assert decoder.decode_one_token(torch.arange(3)).isfinite().all()
