"""Layer norms of the decoder on a CPU: compiled, with what the result is added to in the same pass.

A layer has four, two of them before an addition; for a few rows torch takes longer to start these
six operators than to compute them. See `native/layer_norm.cpp`.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from rudalle_lib.models import native
from rudalle_lib.models.replacing import replace_layers


class _Norm(ctypes.Structure):
    _fields_ = (
        *native.numbers("rows", "width"),
        ("epsilon", ctypes.c_double),
        *native.addresses("input", "weight", "bias", "added", "output"),
    )


class CompiledLayerNorm(nn.Module):
    """As `nn.LayerNorm` over the last dimension, without gradients."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.epsilon = norm.eps

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """The norm of x, [..., C], plus `added` of the same shape, rounded once."""
        x, output = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        self.into(output, x, None if added is None else added.contiguous()).run()
        return output

    def into(self, output: Tensor, x: Tensor, added: Tensor | None = None) -> native.Operation:
        """What `forward` does, of contiguous tensors; `output` may be `added`, or x without it."""
        if x.shape[-1:] != self.weight.shape or x.dtype != self.weight.dtype:
            raise ValueError(
                f"x: expected [..., {len(self.weight)}] in {self.weight.dtype}, "
                f"found {list(x.shape)} in {x.dtype}"
            )
        norm = _Norm(
            x.numel() // len(self.weight), len(self.weight), self.epsilon,
            x.data_ptr(), self.weight.data_ptr(), self.bias.data_ptr(),
            0 if added is None else added.data_ptr(), output.data_ptr(),
        )  # fmt: skip
        tensors = (x, output) if added is None else (x, output, added)
        return native.operation("layer_norm", x.dtype, norm, x.numel(), *tensors)


def can_compile(norm: nn.LayerNorm) -> bool:
    """Whether a norm can do without torch."""
    return (
        native.can_compute(norm.weight)
        and norm.weight.dim() == 1
        and len(norm.weight) % native.BLOCK == 0
    )


def with_compiled_norms(module: nn.Module) -> None:
    """Put a `CompiledLayerNorm` in the place of every layer norm below a module that allows it."""
    replace_layers(
        module, nn.LayerNorm, lambda norm: CompiledLayerNorm(norm) if can_compile(norm) else norm
    )
