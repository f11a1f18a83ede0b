"""Doubling a picture and convolving it, in fewer steps.

After nearest-neighbour doubling, the nine pixels under a 3x3 kernel are copies of only four, so the
doubled picture need not be made: a transposed convolution of stride 2, whose 4x4 kernel holds sums
of the weights, gives the same in four products a pixel instead of nine. Sums round differently, so
float32 does as the originals do, and only less precise layers are folded.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DoublingConv(nn.Conv2d):
    """Twice the side by nearest neighbours, then a 3x3 convolution that keeps it."""

    folded: Tensor | None

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1)
        self.register_buffer("folded", None, persistent=False)

    @torch.no_grad()
    def fold(self) -> None:
        """Work in one step from now on; the weights must not change any more."""
        corners = ((0, 1, 0, 1), (1, 0, 0, 1), (0, 1, 1, 0), (1, 0, 1, 0))  # where a copy may lie
        kernel = torch.stack([F.pad(self.weight, corner) for corner in corners]).sum(0)
        kernel = kernel.flip(2, 3).transpose(0, 1)  # as transposed convolutions have it
        self.folded = kernel.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] to [B, C_out, 2H, 2W]."""
        if self.folded is not None:
            return F.conv_transpose2d(x, self.folded, self.bias, stride=2, padding=1)
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))
