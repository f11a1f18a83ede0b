"""Compiled attention matches that of torch, for every kind of layer and grouping of images."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from rudalle_lib import kernels
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.decoding.cache_slots import plan_slots
from rudalle_lib.models.decoding.cached_decoder import CachedDecoder
from rudalle_lib.models.decoding.native_cache import ImageGroups, NativeLayerCache, can_attend
from rudalle_lib.models.decoding.prompt_sharing import Replicas
from rudalle_lib.models.decoding.torch_cache import TorchLayerCache
from rudalle_lib.models.sparse_attention import LayerKind, TokenGrid
from tests.support.compiled import AMX, amx_by, needs_kernels
from tests.support.layer_patterns import PATTERNS

CPU = torch.device("cpu")
PROMPT_OF = torch.tensor([2, 0, 2, 1, 2, 2, 2, 0, 2, 2, 2, 2, 0, 2, 0, 2, 0])
"""Groups of 8, 4 and single images, whose prompts are in no order."""

TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 0.02}

BACKENDS = [
    (torch.float64, None),
    (torch.float32, None),
    (torch.bfloat16, None),
    *((torch.bfloat16, kind) for kind in AMX),
]
"""Dtypes, without and with AMX, and how the test gets it."""

pytestmark = needs_kernels


@pytest.fixture
def backend(amx: str | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels have AMX, or do not."""
    if amx is None:
        monkeypatch.setattr(kernels, "has_amx", lambda: False)
        yield
    else:
        with amx_by(amx):
            yield


def texts(heads: int, length: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    key, value = torch.randn(2, 3, heads, length, width, dtype=torch.float64).to(dtype)
    return key, value


@pytest.mark.parametrize("width", [32, 96, 160])
@pytest.mark.parametrize(("dtype", "amx"), BACKENDS)
@pytest.mark.parametrize(("kind", "wrap"), PATTERNS)
@torch.inference_mode()
def test_attention_matches_torch(
    kind: LayerKind,
    wrap: bool,
    dtype: torch.dtype,
    backend: None,
    width: int,
) -> None:
    torch.manual_seed(0)
    plan = plan_slots(kind, TokenGrid(64, 7, 6, wrap), CPU)
    key, value = texts(2, 64, width, dtype)
    expected = TorchLayerCache(plan, key.double(), value.double(), Replicas(PROMPT_OF, 3))
    native = NativeLayerCache(plan, key, value, ImageGroups(PROMPT_OF))
    for cell in range(42):
        projected = torch.randn(len(PROMPT_OF), 6 * width, dtype=torch.float64).to(dtype)
        found = native.attend(cell, projected).double()
        error = found - expected.attend(cell, projected.double())
        assert error.abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize("num_layers", [5, 6])
@pytest.mark.parametrize("size", [(5, 5), (13, 3), (1, 4)])
@pytest.mark.parametrize("version", ["v2", "v3"])
@torch.inference_mode()
def test_decoder_logits_match_the_masked_forward(
    version: str, size: tuple[int, int], num_layers: int
) -> None:
    torch.manual_seed(0)
    config = DalleConfig(num_layers, 64, 2, 60, 32, 9, *size, version)
    model = Dalle(config, blockwise=False)
    model.init_weights(0.15, 0.5, 0.3, 0.7)
    model = model.double().eval()
    text = torch.randint(0, 28, (3, 32))
    image = torch.randint(0, 9, (len(PROMPT_OF), config.image_length))
    logits = model(torch.cat((text[PROMPT_OF], image), dim=1))
    first = 32 if version == "v2" else 31  # the position that predicts the first image token
    expected = logits[:, first : first + config.image_length, 60:]

    decoder = CachedDecoder(model, text, PROMPT_OF)
    found = [decoder.prefill()] + [decoder.decode_one_token(token) for token in image.T[:-1]]
    assert all(isinstance(layer, NativeLayerCache) for layer in decoder._layers)
    torch.testing.assert_close(torch.stack(found, dim=1), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("dtype", "amx"), BACKENDS)
@torch.inference_mode()
def test_attention_is_batch_invariant(dtype: torch.dtype, backend: None) -> None:
    torch.manual_seed(0)
    plan = plan_slots(LayerKind.CONVOLUTION, TokenGrid(32, 4, 4), CPU)
    key, value = texts(3, 32, 64, dtype)
    steps = torch.randn(16, len(PROMPT_OF), 9 * 64).to(dtype)

    def contexts(images: Tensor) -> Tensor:
        layer = NativeLayerCache(plan, key, value, ImageGroups(PROMPT_OF[images]))
        return torch.stack([layer.attend(cell, step[images]) for cell, step in enumerate(steps)])

    expected = contexts(torch.arange(len(PROMPT_OF)))
    for size in (1, 3, 5):
        for batch in torch.randperm(len(PROMPT_OF)).split(size):
            assert torch.equal(contexts(batch), expected[:, batch])


@pytest.mark.parametrize("threads", [1, 2, 3])
@torch.inference_mode()
def test_attention_does_not_depend_on_the_number_of_threads(threads: int) -> None:
    torch.manual_seed(0)
    plan = plan_slots(LayerKind.ROW, TokenGrid(32, 4, 4), CPU)
    key, value = texts(3, 32, 32, torch.float32)
    step = torch.randn(len(PROMPT_OF), 9 * 32)
    before = torch.get_num_threads()
    expected = NativeLayerCache(plan, key, value, ImageGroups(PROMPT_OF)).attend(0, step)
    try:
        torch.set_num_threads(threads)
        found = NativeLayerCache(plan, key, value, ImageGroups(PROMPT_OF)).attend(0, step)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, expected)


def test_can_attend_is_false_for_unsupported_layers() -> None:
    plan = plan_slots(LayerKind.ROW, TokenGrid(32, 4, 4), CPU)

    def fits(length: int, width: int, dtype: torch.dtype = torch.float32) -> bool:
        return can_attend(plan, torch.empty(1, 2, length, width, dtype=dtype))

    assert fits(32, 32) and fits(128, 128, torch.bfloat16)
    assert not fits(24, 32) and not fits(32, 48)  # not whole blocks
    assert not fits(32, 288) and not fits(512, 32)  # above the maximum
    assert not fits(32, 32, torch.float16)
    meta = torch.empty(1, 2, 32, 32, device="meta")
    assert not can_attend(plan, meta)


def test_without_kernels_the_decoder_uses_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "is_available", lambda: False)
    model = Dalle(DalleConfig(2, 64, 2, 60, 32, 9, 3, 3)).eval()
    decoder = CachedDecoder(model, torch.ones(1, 32, dtype=torch.int64), torch.zeros(2).long())
    decoder.prefill()
    assert all(isinstance(layer, TorchLayerCache) for layer in decoder._layers)


@pytest.mark.parametrize(
    "projected", [torch.zeros(2, 96), torch.zeros(3, 95), torch.zeros(3, 96, dtype=torch.float64)]
)
def test_projections_that_do_not_fit_are_rejected(projected: Tensor) -> None:
    plan = plan_slots(LayerKind.ROW, TokenGrid(32, 4, 4), CPU)
    key, value = torch.zeros(2, 1, 1, 32, 32)
    layer = NativeLayerCache(plan, key, value, ImageGroups(torch.zeros(3).long()))
    with pytest.raises(ValueError, match=r"expected \[3, 96\] in torch.float32, found"):
        layer.attend(0, projected)
