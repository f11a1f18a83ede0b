"""Compiled layer norms for a CPU, fused with the residual addition that follows.

A decoder layer has four layer norms, two of them before an addition. For a few rows, torch takes
longer to start these six operators than to compute them. See `kernels/csrc/layer_norm.cpp`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rudalle_lib import kernels
from rudalle_lib.kernels.abi import BLOCK, LayerNormArgs
from rudalle_lib.models.layers.replace import replace_layers


class FusedLayerNorm(nn.Module):
    """`nn.LayerNorm` over the last dimension, for inference only."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.epsilon = norm.eps

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """Return the norm of x [..., C], plus `added` of the same shape, rounded once."""
        x, output = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        self.bind(output, x, None if added is None else added.contiguous()).run()
        return output

    def bind(self, output: Tensor, x: Tensor, added: Tensor | None = None) -> kernels.Operation:
        """Prepare `forward` on fixed contiguous tensors.

        Args:
            output: is overwritten by each run; may be `added`, or x if there is no `added`.
            x: [..., C].
            added: the same shape.

        Raises:
            ValueError: x has another width or dtype.
        """
        if x.shape[-1:] != self.weight.shape or x.dtype != self.weight.dtype:
            raise ValueError(
                f"x: expected [..., {len(self.weight)}] in {self.weight.dtype}, "
                f"found {list(x.shape)} in {x.dtype}"
            )
        args = LayerNormArgs(
            x.numel() // len(self.weight), len(self.weight), self.epsilon,
            x.data_ptr(), self.weight.data_ptr(), self.bias.data_ptr(),
            0 if added is None else added.data_ptr(), output.data_ptr(),
        )  # fmt: skip
        tensors = (x, output) if added is None else (x, output, added)
        return kernels.operation("layer_norm", x.dtype, args, x.numel(), *tensors)


def can_fuse(norm: nn.LayerNorm) -> bool:
    """Whether the compiled kernel can compute a layer norm."""
    return (
        kernels.supports(norm.weight) and norm.weight.dim() == 1 and len(norm.weight) % BLOCK == 0
    )


def use_fused_layer_norms(module: nn.Module) -> None:
    """Replace every layer norm below a module by a `FusedLayerNorm` if possible."""
    replace_layers(
        module, nn.LayerNorm, lambda norm: FusedLayerNorm(norm) if can_fuse(norm) else norm
    )
