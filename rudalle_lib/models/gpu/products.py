"""The matrix products of a step, on a GPU with the activation in the same kernel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rudalle_lib.models.layers.int8_dynamic_linear import GpuDynamicInt8Linear
from rudalle_lib.models.layers.int8_linear import Int8Linear
from rudalle_lib.models.layers.triton_support import BoundedRows, RoundedRows

Rows = Tensor | RoundedRows | BoundedRows
"""The inputs of a product; only layers that round their inputs take the last two."""


def rounds_inputs(layer: nn.Module) -> bool:
    """Whether a layer takes its inputs in 8 bits."""
    return isinstance(layer, GpuDynamicInt8Linear)


def linear(layer: nn.Module, x: Rows) -> Tensor:
    """Apply a linear layer of any precision. [R, inputs] -> [R, outputs]."""
    if isinstance(layer, GpuDynamicInt8Linear):
        return layer.multiply_on_gpu(x)
    assert isinstance(x, Tensor)
    return layer.multiply_on_gpu(x) if isinstance(layer, Int8Linear) else layer(x)


def linear_gelu(layer: nn.Module, x: Rows) -> Tensor:
    """Apply a linear layer, then GELU in its tanh form. [R, inputs] -> [R, outputs]."""
    if isinstance(layer, GpuDynamicInt8Linear):
        return layer.multiply_on_gpu(x, gelu=True)
    assert isinstance(x, Tensor)
    if isinstance(layer, Int8Linear):
        return layer.multiply_on_gpu(x, gelu=True)
    if x.is_cuda and isinstance(layer, nn.Linear):
        # On CUDA this is the tanh form, in the epilogue of the product; on a CPU it is not.
        return torch._addmm_activation(layer.bias, x, layer.weight.t(), use_gelu=True)
    return functional.gelu(layer(x), approximate="tanh")
