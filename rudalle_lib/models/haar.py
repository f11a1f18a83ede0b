"""The inverse Haar wavelet transform at the end of the VQ-GAN's DWT decoder.

Source: ai-forever/ru-dalle, `rudalle/vae/decoder_dwt.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

IMAGE_CHANNELS = 3
"""Colour channels of an image: RGB."""

HAAR_BANDS = 4
"""Bands per colour channel: one low band and three high bands."""


class InverseHaar(nn.Module):
    """One level of the inverse Haar (db1) transform: [B, 12, H, W] -> [B, 3, 2H, 2W].

    Input channels: the low band of all 3 colours, then the 3 high bands per colour (rows, columns,
    both). The filters are buffers because the published checkpoint contains them.
    """

    g0_col: Tensor
    g1_col: Tensor
    g0_row: Tensor
    g1_row: Tensor

    def __init__(self) -> None:
        super().__init__()
        low = torch.full((2,), 0.5).sqrt()
        high = low * torch.tensor([1.0, -1.0])
        self.register_buffer("g0_col", low.clone().view(1, 1, 2, 1))
        self.register_buffer("g1_col", high.clone().view(1, 1, 2, 1))
        self.register_buffer("g0_row", low.clone().view(1, 1, 1, 2))
        self.register_buffer("g1_row", high.clone().view(1, 1, 1, 2))

    def forward(self, bands: Tensor) -> Tensor:
        """Apply the transform. [B, 12, H, W] -> [B, 3, 2H, 2W]."""
        low = bands[:, :IMAGE_CHANNELS, None]  # [B, 3, 1, H, W]
        high = rearrange(bands[:, IMAGE_CHANNELS:], "b (c k) h w -> b c k h w", k=3)
        by_colour = rearrange(torch.cat([low, high], dim=2), "b c k h w -> b (c k) h w")
        kernels = torch.cat(
            [
                self.g0_col * self.g0_row,
                self.g1_col * self.g0_row,
                self.g0_col * self.g1_row,
                self.g1_col * self.g1_row,
            ]
        ).repeat(IMAGE_CHANNELS, 1, 1, 1)  # [3 * 4, 1, 2, 2]
        return F.conv_transpose2d(by_colour, kernels, stride=2, groups=IMAGE_CHANNELS)
