"""Products with 8-bit weights on a GPU equal float64; those with 8-bit inputs are exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.gpu.products import linear, linear_gelu
from rudalle_lib.models.gpu.step import DecoderStep, Room
from rudalle_lib.models.layers.int8_dynamic_linear import GpuDynamicInt8Linear
from rudalle_lib.models.layers.int8_linear import Int8Linear, quantise, use_int8_linears
from rudalle_lib.models.layers.replace import replace_layers
from rudalle_lib.models.layers.triton_int8 import quantise as quantise_rows
from rudalle_lib.models.layers.triton_support import BoundedRows


def random_layer(inputs: int, outputs: int, device: torch.device) -> Int8Linear:
    torch.manual_seed(inputs)
    layer = Int8Linear(inputs, outputs)
    layer.weight, layer.scale = quantise(torch.randn(outputs, inputs))
    torch.nn.init.normal_(layer.bias)
    return layer.to(device)


def in_float64(layer: Int8Linear, x: Tensor) -> Tensor:
    weight = layer.weight.double() * layer.scale.double()[:, None]
    return functional.linear(x.double(), weight, layer.bias.double())


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 32, 96), (17, 192, 64), (70, 130, 65)])
@torch.inference_mode()
def test_8_bit_weights(rows: int, inputs: int, outputs: int, device: torch.device) -> None:
    layer, x = random_layer(inputs, outputs, device), torch.randn(rows, inputs, device=device)
    expected = in_float64(layer, x)
    torch.testing.assert_close(linear(layer, x).double(), expected, atol=2e-5, rtol=1e-5)
    wide = functional.gelu(expected, approximate="tanh")
    torch.testing.assert_close(linear_gelu(layer, x).double(), wide, atol=2e-5, rtol=1e-5)
    for dtype, bound in ((torch.float16, 2e-3), (torch.bfloat16, 1e-2)):
        found, expected = linear(layer, x.to(dtype)), in_float64(layer, x.to(dtype))
        assert found.dtype is dtype
        torch.testing.assert_close(found.double(), expected, atol=10 * bound, rtol=bound)


@torch.inference_mode()
def test_8_bit_inputs_are_rounded_to_the_nearest_level_and_sums_are_exact(
    device: torch.device,
) -> None:
    layer = random_layer(160, 70, device)
    dynamic = GpuDynamicInt8Linear(layer)
    x = torch.randn(18, 160, device=device) * 10.0 ** torch.arange(-4, 14, device=device)[:, None]
    x[3] = 0
    levels, step = quantise_rows(x)
    assert torch.equal(step, (x.abs().amax(1) / step.new_tensor(127.0)).clamp(min=1e-20))
    assert torch.equal(levels, (x * (1 / step)[:, None]).round().to(torch.int8))
    assert int(levels.abs().max()) == 127
    sums = levels.double() @ layer.weight.double().T  # exact
    expected = (sums.float() * layer.scale * step[:, None]) + layer.bias
    torch.testing.assert_close(linear(dynamic, x), expected, atol=1e-6, rtol=1e-6)
    wide = functional.gelu(expected.double(), approximate="tanh").float()
    torch.testing.assert_close(linear_gelu(dynamic, x), wide, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_rows_may_be_rounded_before_or_during_the_product(
    dtype: torch.dtype, device: torch.device
) -> None:
    layer = GpuDynamicInt8Linear(random_layer(160, 70, device).to(dtype))
    x = torch.randn(18, 160, device=device) * 10.0 ** torch.arange(-4, 14, device=device)[:, None]
    x[3] = 0
    x = x.to(dtype)
    before, during = quantise_rows(x), BoundedRows(x, x.abs().amax(1).float())
    expected = linear(layer, x)
    assert torch.equal(linear(layer, before), expected)
    assert torch.equal(linear(layer, during), expected)
    assert torch.equal(linear_gelu(layer, during), linear_gelu(layer, x))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@torch.inference_mode()
def test_rows_that_are_not_finite_stay_so_and_leave_others_alone(
    bad: float, device: torch.device
) -> None:
    layer = GpuDynamicInt8Linear(random_layer(64, 32, device))
    x = torch.randn(3, 64, device=device)
    before = linear(layer, x)
    x[1, 5] = bad
    largest = torch.where(x.isfinite(), x.abs(), torch.inf).amax(1)
    for rows in (x, BoundedRows(x, largest)):
        after = linear(layer, rows)
        assert not after[1].isfinite().any()
        assert torch.equal(after[[0, 2]], before[[0, 2]])


@pytest.mark.parametrize("dynamic", [False, True])
@torch.inference_mode()
def test_a_step_of_8_bit_layers(dynamic: bool, device: torch.device) -> None:
    torch.manual_seed(0)
    plain = Dalle(DalleConfig(2, 32, 2, 30, 6, 16, 1, 2)).eval()
    plain.init_weights(0.2, 0.5, 0.3, 0.7)
    model = Dalle(plain.config).eval()
    use_int8_linears(model.transformer)
    state = {}
    for name, tensor in plain.state_dict().items():
        state[name] = tensor
        if f"{name.removesuffix('weight')}scale" in model.state_dict():
            state[name], state[f"{name.removesuffix('weight')}scale"] = quantise(tensor)
    model.load_state_dict(state)
    if dynamic:
        replace_layers(model.transformer, Int8Linear, GpuDynamicInt8Linear)
    logits = []
    for network in (plain, model):
        if device.type == "cpu":  # what a GPU has: `forward` by the kernels
            for layer in network.modules():
                if isinstance(layer, Int8Linear):
                    layer.forward = layer.multiply_on_gpu  # type: ignore[method-assign]
        step = DecoderStep(network.to(device), Room(2, 1, 1))
        step.start(network, torch.tensor([[3, 4, 5, 0, 0, 0]]), [0, 0], step.settings)
        step.advance()
        logits.append(step._logits.clone())
    error = (logits[0] - logits[1]).std() / logits[0].std()
    assert 0 < error < 0.05
