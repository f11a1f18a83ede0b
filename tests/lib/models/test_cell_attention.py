"""Compiled attention of a step gives what torch's gives, for every kind of layer and grouping."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from rudalle_lib.models import native
from rudalle_lib.models.cell_attention import CompiledLayerCache, ImageGroups, can_attend
from rudalle_lib.models.cell_slots import plan_slots
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.kv_cache import CachedDecoder
from rudalle_lib.models.layer_cache import LayerCache
from rudalle_lib.models.sparse_attention import LayerKind, TokenGrid
from rudalle_lib.models.text_sharing import Replicas

CPU = torch.device("cpu")
# Groups of 8, 4 and single images, of texts in no order.
PROMPT_OF = torch.tensor([2, 0, 2, 1, 2, 2, 2, 0, 2, 2, 2, 2, 0, 2, 0, 2, 0])
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 0.02}

WAYS = [
    (torch.float64, False),
    (torch.float32, False),
    (torch.bfloat16, False),
    (torch.bfloat16, True),
]

needs_compiler = pytest.mark.skipif(
    not native.is_compiled() and shutil.which("c++") is None, reason="there is no C++ compiler"
)
pytestmark = needs_compiler


def use_tiles(wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if wanted and not native.can_multiply_tiles():
        pytest.skip("this processor has no AMX")
    monkeypatch.setattr(native, "can_multiply_tiles", lambda: wanted)


def texts(heads: int, length: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    key, value = torch.randn(2, 3, heads, length, width, dtype=torch.float64).to(dtype)
    return key, value


@pytest.mark.parametrize("width", [32, 96, 160])
@pytest.mark.parametrize(("dtype", "tiles"), WAYS)
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("kind", LayerKind)
@torch.inference_mode()
def test_it_gives_what_torch_gives(
    kind: LayerKind,
    wrap: bool,
    dtype: torch.dtype,
    tiles: bool,
    width: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_tiles(tiles, monkeypatch)
    torch.manual_seed(0)
    plan = plan_slots(kind, TokenGrid(64, 7, 6, wrap), CPU)
    key, value = texts(2, 64, width, dtype)
    expected = LayerCache(plan, key.double(), value.double(), Replicas(PROMPT_OF, 3))
    found = CompiledLayerCache(plan, key, value, ImageGroups(PROMPT_OF))
    for cell in range(42):
        projected = torch.randn(len(PROMPT_OF), 6 * width, dtype=torch.float64).to(dtype)
        off = found.attend(cell, projected).double() - expected.attend(cell, projected.double())
        assert off.abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize("num_layers", [5, 6])
@pytest.mark.parametrize("size", [(5, 5), (13, 3), (1, 4)])
@pytest.mark.parametrize("version", ["v2", "v3"])
@torch.inference_mode()
def test_a_decoder_with_it_gives_the_logits_of_the_masked_forward(
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
    assert all(isinstance(layer, CompiledLayerCache) for layer in decoder._layers)
    torch.testing.assert_close(torch.stack(found, dim=1), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("dtype", "tiles"), WAYS)
@torch.inference_mode()
def test_an_image_does_not_depend_on_its_company_in_a_single_bit(
    dtype: torch.dtype, tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiles(tiles, monkeypatch)
    torch.manual_seed(0)
    plan = plan_slots(LayerKind.CONVOLUTION, TokenGrid(32, 4, 4), CPU)
    key, value = texts(3, 32, 64, dtype)
    steps = torch.randn(16, len(PROMPT_OF), 9 * 64).to(dtype)

    def contexts(images: Tensor) -> Tensor:
        layer = CompiledLayerCache(plan, key, value, ImageGroups(PROMPT_OF[images]))
        return torch.stack([layer.attend(cell, step[images]) for cell, step in enumerate(steps)])

    together = contexts(torch.arange(len(PROMPT_OF)))
    for size in (1, 3, 5):
        for some in torch.randperm(len(PROMPT_OF)).split(size):
            assert torch.equal(contexts(some), together[:, some])


@pytest.mark.parametrize("threads", [1, 2, 3])
@torch.inference_mode()
def test_nor_on_the_number_of_threads(threads: int) -> None:
    torch.manual_seed(0)
    plan = plan_slots(LayerKind.ROW, TokenGrid(32, 4, 4), CPU)
    key, value = texts(3, 32, 32, torch.float32)
    step = torch.randn(len(PROMPT_OF), 9 * 32)
    before = torch.get_num_threads()
    expected = CompiledLayerCache(plan, key, value, ImageGroups(PROMPT_OF)).attend(0, step)
    try:
        torch.set_num_threads(threads)
        found = CompiledLayerCache(plan, key, value, ImageGroups(PROMPT_OF)).attend(0, step)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, expected)


def test_what_does_not_fit_is_left_to_torch() -> None:
    plan = plan_slots(LayerKind.ROW, TokenGrid(32, 4, 4), CPU)

    def fits(length: int, width: int, dtype: torch.dtype = torch.float32) -> bool:
        return can_attend(plan, torch.empty(1, 2, length, width, dtype=dtype))

    assert fits(32, 32) and fits(128, 128, torch.bfloat16)
    assert not fits(24, 32) and not fits(32, 48)  # no whole blocks
    assert not fits(32, 288) and not fits(512, 32)  # more than there is room for
    assert not fits(32, 32, torch.float16)
    meta = torch.empty(1, 2, 32, 32, device="meta")
    assert not can_attend(plan, meta)


def test_without_a_compiler_layers_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "is_compiled", lambda: False)
    model = Dalle(DalleConfig(2, 64, 2, 60, 32, 9, 3, 3)).eval()
    decoder = CachedDecoder(model, torch.ones(1, 32, dtype=torch.int64), torch.zeros(2).long())
    decoder.prefill()
    assert all(isinstance(layer, LayerCache) for layer in decoder._layers)


@pytest.mark.parametrize(("value", "compiled"), [("0", False), ("1", True)])
def test_a_variable_of_the_environment_leaves_everything_to_torch(
    value: str, compiled: bool
) -> None:
    script = "from rudalle_lib.models import native; print(native.is_compiled())"
    told = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, native.SWITCH: value},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout.strip() == str(compiled)


@pytest.mark.parametrize(
    "projected", [torch.zeros(2, 96), torch.zeros(3, 95), torch.zeros(3, 96, dtype=torch.float64)]
)
def test_projections_that_do_not_fit_are_refused(projected: Tensor) -> None:
    plan = plan_slots(LayerKind.ROW, TokenGrid(32, 4, 4), CPU)
    key, value = torch.zeros(2, 1, 1, 32, 32)
    layer = CompiledLayerCache(plan, key, value, ImageGroups(torch.zeros(3).long()))
    with pytest.raises(ValueError, match=r"expected \[3, 96\] in torch.float32, found"):
        layer.attend(0, projected)
