"""A step launches few kernels, waits for nothing, and depends only on its own fixed tensors."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.gpu import add_norms, cell_attention, draw_token, embed_token
from rudalle_lib.models.gpu import step as step_module
from rudalle_lib.models.gpu.draw_settings import NO_IMAGE, DrawSettings, no_images
from rudalle_lib.models.gpu.step import DecoderStep, Room
from rudalle_lib.models.layers import triton_int8
from rudalle_lib.models.layers.int8_dynamic_linear import GpuDynamicInt8Linear
from rudalle_lib.models.layers.int8_linear import Int8Linear
from rudalle_lib.models.layers.replace import replace_layers
from tests.support.linear_layers import to_int8_linear
from tests.support.pretended_cuda import NO_KERNEL

KERNELS = {
    "cell_attention": cell_attention, "add_norms": add_norms, "embed_token": embed_token,
    "draw_token": draw_token, "int8_product": triton_int8, "quantise_rows": triton_int8,
}  # fmt: skip
"""The kernels of a step, and their modules."""

PER_STEP = {"cell_attention": 24, "add_norms": 48, "embed_token": 1, "draw_token": 1}
"""How often a step of 24 layers starts the kernels that it has in every precision."""

WAITS = {"_local_scalar_dense", "nonzero", "item", "equal", "_to_copy"}
"""Operators that wait for the device, or copy between it and the CPU."""


class Launches(TorchDispatchMode):
    """Counts operators."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func._schema.name.split("::")[1]] += 1
        return func(*args, **(kwargs or {}))


class Counted:
    """Counts how often a kernel is started, and computes nothing."""

    def __init__(self, name: str, counts: Counter[str]) -> None:
        self._name, self._counts = name, counts

    def __getitem__(self, grid: Any) -> Any:
        return lambda *_, **__: self._counts.update([self._name])


def build(device: torch.device, layers: int, **changes: Any) -> Dalle:
    torch.manual_seed(0)
    config = DalleConfig(layers, 32, 2, 30, 6, 16, 3, 3, **changes)
    return Dalle(config).eval().to(device)


def three_images(device: torch.device) -> DrawSettings:
    settings = no_images(3, 9, device)
    settings.empty_row.fill_(-1)
    return settings


def use_8_bits(model: Dalle, dynamic: bool) -> None:
    """Replace the linear layers by those that a GPU has in `int8` or `int8_dynamic`."""
    replace_layers(model.transformer, torch.nn.Linear, to_int8_linear)
    if dynamic:
        replace_layers(model.transformer, Int8Linear, GpuDynamicInt8Linear)


@pytest.mark.parametrize(
    ("precision", "of_precision"),
    [
        ("float32", {}),
        ("int8", {"int8_product": 96}),
        ("int8_dynamic", {"int8_product": 96, "quantise_rows": 24}),
    ],
)
@torch.inference_mode()
def test_a_step_of_24_layers_launches_at_most_200_kernels(
    precision: str,
    of_precision: dict[str, int],
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernels: Counter[str] = Counter()
    for name, module in KERNELS.items():
        monkeypatch.setattr(module, name, Counted(name, kernels))
    model = build(device, 24)
    if precision != "float32":
        use_8_bits(model, dynamic=precision == "int8_dynamic")
    step = DecoderStep(model, Room(3, 2, 2))
    with Launches() as launches:
        step.advance()
    assert kernels == PER_STEP | of_precision
    assert not WAITS & set(launches.counts)
    views = NO_KERNEL | {"reshape"}  # of contiguous tensors only
    operators = sum(n for name, n in launches.counts.items() if name not in views)
    if device.type == "cpu":
        operators -= launches.counts["gelu"]  # on a GPU it is part of the product
    assert kernels.total() + operators <= 200


@torch.inference_mode()
def test_inputs_rounded_by_the_kernels_before_a_product_give_the_same_bits(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a kernel of its own rounded the inputs of every product."""
    model = build(device, 2, version="v2")
    model.init_weights(0.2, 0.5, 0.3, 0.7)
    use_8_bits(model.bfloat16(), dynamic=True)
    text = torch.tensor([[3, 4, 0, 0, 0, 0], [5, 6, 7, 0, 0, 0]])

    def logits() -> list[torch.Tensor]:
        step = DecoderStep(model, Room(3, 2, 2))
        step.start(model, text, [1, 0, 1], three_images(device))
        first = step._logits.clone()
        step.advance()
        return [first, step._logits]

    before = logits()
    monkeypatch.setattr(step_module, "rounds_inputs", lambda layer: False)
    for found, expected in zip(before, logits(), strict=True):
        assert torch.equal(found, expected) and found.isfinite().all()
    assert not torch.equal(*before)


@torch.inference_mode()
def test_a_step_does_not_keep_its_network(device: torch.device) -> None:
    model = build(device, 2)
    step, network = DecoderStep(model, Room(1, 1, 1)), weakref.ref(model)
    del model
    gc.collect()
    assert network() is None
    step.advance()  # its layers are still there


@torch.inference_mode()
def test_rows_without_images_change_nothing_and_are_not_drawn(device: torch.device) -> None:
    """Fixed tensors keep what earlier batches left; it must not reach later ones."""
    model, text = build(device, 3), torch.tensor([[3, 4, 0, 0, 0, 0], [5, 6, 7, 0, 0, 0]])
    fresh, used = (DecoderStep(model, Room(4, 2, 2)) for _ in range(2))
    used.start(model, text, [1, 0, 1], three_images(device))
    for _ in range(2):
        used.advance()
    used.drawn.logprobs.fill_(torch.nan)
    for cache in used._caches:  # left behind by other texts and images
        for tensor in cache:
            tensor.fill_(torch.nan)
    one = DrawSettings(*(field[:1] for field in three_images(device)))
    for step in (fresh, used):
        step.start(model, text[:1], [0], one)
        for _ in range(2):
            step.advance()
    assert torch.equal(fresh.drawn.tokens[0, :3], used.drawn.tokens[0, :3])
    assert torch.equal(fresh.drawn.logprobs[0, :3], used.drawn.logprobs[0, :3])
    assert used.settings.empty_row.tolist() == [-1, NO_IMAGE, NO_IMAGE, NO_IMAGE]
    assert used.drawn.logprobs[1:].isnan().all()


@torch.inference_mode()
def test_texts_are_read_in_chunks_of_one_size(device: torch.device) -> None:
    """The keys of a text do not depend on how many texts are read with it: not one bit."""
    torch.manual_seed(2)
    model, text = build(device, 2), torch.randint(0, 24, (11, 6))
    settings = DrawSettings(*(field[:1] for field in three_images(device)))
    step = DecoderStep(model, Room(1, 16, 1))
    step.start(model, text, [10], settings)
    together = [cache.text_key[10].clone() for cache in step._caches]
    step.start(model, text[10:], [0], settings)
    for keys, cache in zip(together, step._caches, strict=True):
        assert torch.equal(cache.text_key[0], keys)
