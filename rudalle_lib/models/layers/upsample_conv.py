"""Nearest-neighbour upsampling and a convolution, combined into one step.

After nearest-neighbour upsampling by 2, the nine pixels under a 3x3 kernel are copies of only four.
A transposed convolution of stride 2, whose 4x4 kernel holds sums of the weights, gives the same
result with four products per pixel instead of nine, and without the upsampled image. Its sums round
differently, so layers in float32 keep the two steps of the originals and only layers in lower
precision are folded.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class UpsampleConv(nn.Conv2d):
    """Nearest-neighbour upsampling by 2, then a 3x3 convolution with padding 1."""

    folded: Tensor | None

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1)
        self.register_buffer("folded", None, persistent=False)

    @torch.no_grad()
    def fold(self) -> None:
        """Combine both steps into one; the weights must not change afterwards."""
        # A pixel has four copies; each sees the kernel at another offset in the 4x4 kernel.
        offsets = ((0, 1, 0, 1), (1, 0, 0, 1), (0, 1, 1, 0), (1, 0, 1, 0))
        kernel = torch.stack([F.pad(self.weight, offset) for offset in offsets]).sum(0)
        kernel = kernel.flip(2, 3).transpose(0, 1)  # the layout of transposed convolutions
        self.folded = kernel.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer. [B, C_in, H, W] -> [B, C_out, 2H, 2W]."""
        if self.folded is not None:
            return F.conv_transpose2d(x, self.folded, self.bias, stride=2, padding=1)
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))
