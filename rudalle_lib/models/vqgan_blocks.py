"""The blocks of the VQ-GAN: residual and attention blocks, down- and upsampling.

Source: CompVis/taming-transformers, `taming/modules/diffusionmodules/model.py`. Parameter names are
those of the published checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rudalle_lib.models.layers.group_norm import normalise
from rudalle_lib.models.layers.upsample_conv import UpsampleConv


class Middle(nn.Module):
    """Residual block, attention, residual block, at the resolution of the tokens."""

    def __init__(self, width: int, norm_groups: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(width, width, norm_groups)
        self.attn_1 = AttentionBlock(width, norm_groups)
        self.block_2 = ResidualBlock(width, width, norm_groups)

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply the blocks. [B, C, h, w] -> the same shape."""
        return self.block_2(self.attn_1(self.block_1(hidden)))


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 convolution of x if widths differ."""

    def __init__(self, width_in: int, width_out: int, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(width_in, norm_groups)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = group_norm(width_out, norm_groups)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        same = width_in == width_out
        self.nin_shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block. [B, C_in, H, W] -> [B, C_out, H, W]."""
        hidden = self.conv1(normalise(self.norm1, x))
        hidden = self.conv2(normalise(self.norm2, hidden))
        return hidden.add_(self.nin_shortcut(x))


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions, added to its input."""

    def __init__(self, width: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = group_norm(width, norm_groups)
        self.q = nn.Conv2d(width, width, 1)
        self.k: nn.Module = nn.Conv2d(width, width, 1)
        self.v: nn.Module = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    @torch.no_grad()
    def fold(self) -> None:
        """Merge the weights into two products instead of four; they must not change afterwards.

        The scores are q.k = (k^T q).x plus a term that is equal for all keys and cancels in the
        softmax. The values can be projected after averaging. So the normalised features themselves
        serve as keys and values.
        """
        convs = (self.q, self.k, self.v, self.proj_out)
        q, k, v, out = (conv.get_parameter("weight").flatten(1) for conv in convs)
        q_bias, _, v_bias, out_bias = (conv.get_parameter("bias") for conv in convs)
        out_bias.add_(out @ v_bias)
        q_bias.copy_(k.T @ q_bias)
        self.proj_out.weight.copy_((out @ v)[..., None, None])
        self.q.weight.copy_((k.T @ q)[..., None, None])
        self.k = self.v = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block. [B, C, h, w] -> the same shape."""
        normed = normalise(self.norm, x, activate=False)  # [B, C, h, w]
        q, k, v = (
            rearrange(conv(normed), "b c h w -> b 1 (h w) c") for conv in (self.q, self.k, self.v)
        )
        attended = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        attended = rearrange(attended, "b (h w) c -> b c h w", w=x.shape[3])
        return x + self.proj_out(attended)


class Downsample(nn.Module):
    """Downsampling by 2: a strided convolution, padded by one pixel at the bottom and right."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer. [B, C, H, W] -> [B, C, H/2, W/2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Upsampling by 2: nearest neighbours, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = UpsampleConv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer. [B, C, H, W] -> [B, C, 2H, 2W]."""
        return self.conv(x)


def group_norm(width: int, groups: int) -> nn.GroupNorm:
    """Build a GroupNorm with the epsilon of the original."""
    return nn.GroupNorm(groups, width, eps=1e-6)
