"""All layers in one compiled call give what they give one by one."""

import pytest
import torch
from torch import Tensor, nn

from rudalle_lib.models import native
from rudalle_lib.models.compiled_layer_norm import with_compiled_norms
from rudalle_lib.models.compiled_step import CompiledStep
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.dynamic_int8_linear import with_dynamic_int8_linears
from rudalle_lib.models.kv_cache import CachedDecoder
from rudalle_lib.models.packed_linear import with_packed_linears
from rudalle_lib.models.replacing import replace_layers
from tests.linear_layers import in_8_bits

pytestmark = pytest.mark.skipif(
    not native.can_multiply_tiles(), reason="this processor has no AMX, or there is no compiler"
)

PROMPT_OF = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1])


def decoder(dtype: torch.dtype, version: str = "v3", sandwich: bool = True) -> Dalle:
    torch.manual_seed(0)
    config = DalleConfig(6, 64, 2, 60, 32, 32, 4, 3, version, sandwich_norm=sandwich)
    model = Dalle(config)
    model.init_weights(0.15, 0.5, 0.3, 0.7)
    model = model.bfloat16().eval()
    if dtype is torch.qint8:
        replace_layers(model.transformer, nn.Linear, in_8_bits)
        with_dynamic_int8_linears(model.transformer)
    with_packed_linears(model.transformer)
    with_compiled_norms(model.transformer)
    return model


def logits(model: Dalle, compiled: bool) -> Tensor:
    text = torch.arange(64).view(2, 32) % 28
    drawing = CachedDecoder(model, text, PROMPT_OF)
    if not compiled:
        vars(drawing)["_compiled_step"] = None
    tokens = torch.arange(len(PROMPT_OF) * 11).view(11, -1) * 7 % 32
    found = [drawing.prefill().clone()]
    found += [drawing.decode_one_token(token).clone() for token in tokens]
    assert isinstance(drawing._compiled_step, CompiledStep) is compiled
    return torch.stack(found)


@pytest.mark.parametrize("version", ["v2", "v3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.qint8])
@torch.inference_mode()
def test_logits_are_those_of_one_layer_after_the_other(dtype: torch.dtype, version: str) -> None:
    model = decoder(dtype, version)
    expected = logits(model, False)
    assert expected.isfinite().all() and expected.std() > 0.1
    assert torch.equal(logits(model, True), expected)


@torch.inference_mode()
def test_two_batches_of_one_model_do_not_meet() -> None:
    model = decoder(torch.bfloat16)
    text = torch.arange(64).view(2, 32) % 28
    one, other = (CachedDecoder(model, text, images) for images in (PROMPT_OF, PROMPT_OF[:3]))
    one.prefill(), other.prefill()
    token = torch.arange(len(PROMPT_OF))
    expected = one.decode_one_token(token).clone()
    other.decode_one_token(token[:3] + 5)
    again = CachedDecoder(model, text, PROMPT_OF)
    again.prefill()
    assert torch.equal(again.decode_one_token(token), expected)
    assert torch.equal(one.decode_one_token(token), again.decode_one_token(token))


@torch.inference_mode()
def test_layers_of_which_a_part_is_not_compiled_run_one_by_one() -> None:
    model = decoder(torch.bfloat16, sandwich=False)
    drawing = CachedDecoder(model, torch.ones(1, 32).long(), torch.zeros(3).long())
    assert drawing.prefill().isfinite().all() and drawing._compiled_step is None
    assert drawing.decode_one_token(torch.arange(3)).isfinite().all()
