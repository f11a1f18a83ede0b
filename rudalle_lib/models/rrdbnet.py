"""RRDBNet, the generator of (Real-)ESRGAN: upscales images by 2, 4 or 8.

Paper: Wang et al., "ESRGAN", arXiv 1809.00219; "Real-ESRGAN", arXiv 2107.10833.
Source: xinntao/BasicSR, `rrdbnet_arch.py`; the x8 form with a third upsampling step is from
boomb0om/Real-ESRGAN-colab. Parameter names are those of the published checkpoints.

Shape legend: B batch, H W input image, C features, G growth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rudalle_lib.models.layers.mixed_precision import conv_in_strips, use_dtype
from rudalle_lib.models.layers.upsample_conv import UpsampleConv

IMAGE_CHANNELS = 3
"""Colour channels of an image: RGB."""

SCALES = (2, 4, 8)
"""Scales of the published models."""

RESIDUAL_SCALE = 0.2
"""Factor of each residual branch."""

DENSE_CONVS = 5
"""Convolutions per dense block."""

DENSE_BLOCKS = 3
"""Dense blocks per residual-in-residual block."""


@dataclass(frozen=True)
class RrdbNetConfig:
    """Sizes of an `RrdbNet`; the defaults are those of the published models.

    Args:
        scale: 2, 4 or 8, the factor of each side.
        num_features: channels between the blocks.
        num_blocks: residual-in-residual dense blocks.
        growth: channels that each convolution of a dense block adds.

    Raises:
        ValueError: the scale is not one of `SCALES`.
    """

    scale: int
    num_features: int = 64
    num_blocks: int = 23
    growth: int = 32

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"scale must be one of {SCALES}, found {self.scale}")

    @property
    def unshuffle(self) -> int:
        """Factor of the pixel unshuffle before the network; image sides must be multiples of it."""
        return 2 if self.scale == 2 else 1

    @property
    def upsampling_steps(self) -> int:
        """Upsampling steps by 2; with scale 2 the features start at half the input's side."""
        return 3 if self.scale == 8 else 2

    @property
    def receptive_radius(self) -> int:
        """Distance in input pixels within which pixels affect an output pixel, rounded up."""
        at_features = 2 + self.num_blocks * DENSE_BLOCKS * DENSE_CONVS
        # One convolution after each upsampling step, and two more at full size.
        after = sum(0.5**step for step in range(1, self.upsampling_steps + 1))
        after += 2 * 0.5**self.upsampling_steps
        return self.unshuffle * (at_features + int(after + 1))


class RrdbNet(nn.Module):
    """Upscales float RGB images in [0, 1]; the output is not clamped."""

    def __init__(self, config: RrdbNetConfig) -> None:
        super().__init__()
        self.config = config
        features = config.num_features
        self.conv_first = conv3x3(IMAGE_CHANNELS * config.unshuffle**2, features)
        self.body = nn.Sequential(
            *(ResidualInResidual(features, config.growth) for _ in range(config.num_blocks))
        )
        self.conv_body = conv3x3(features, features)
        self.conv_up1 = UpsampleConv(features, features)
        self.conv_up2 = UpsampleConv(features, features)
        if config.upsampling_steps == 3:
            self.conv_up3 = UpsampleConv(features, features)
        self.conv_hr = conv3x3(features, features)
        self.conv_last = conv3x3(features, IMAGE_CHANNELS)

    def forward(self, images: Tensor) -> Tensor:
        """Upscale images.

        Args:
            images: float [B, 3, H, W] in [0, 1]; with scale 2, H and W must be even.

        Returns:
            float [B, 3, scale * H, scale * W], not clamped.

        Raises:
            ValueError: the sides are not multiples of `RrdbNetConfig.unshuffle`.
        """
        unshuffle = self.config.unshuffle
        if images.shape[-2] % unshuffle or images.shape[-1] % unshuffle:
            raise ValueError(
                f"expected image sides divisible by {unshuffle}, "
                f"found {list(images.shape[-2:])}; pad the image first"
            )
        # [B, 3, H, W], or with scale 2 [B, 12, H/2, W/2].
        shallow = self.conv_first(F.pixel_unshuffle(images, unshuffle))
        hidden = shallow + self.conv_body(self.body(shallow))  # [B, C, H, W], halved for scale 2
        for conv in self._upsampling_convs():
            hidden = leaky_relu(conv(hidden))
        hidden = leaky_relu(self.conv_hr(hidden))
        return conv_in_strips(self.conv_last, hidden)

    def use_dtype(self, dtype: torch.dtype) -> None:
        """Compute in a dtype, except for the last layer; see `mixed_precision`."""
        use_dtype(self, dtype, keep_float32=("conv_last",))

    def _upsampling_convs(self) -> list[nn.Module]:
        convs: list[nn.Module] = [self.conv_up1, self.conv_up2]
        return [*convs, self.conv_up3] if self.config.upsampling_steps == 3 else convs


class ResidualInResidual(nn.Module):
    """Three dense blocks in a scaled residual branch."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = DenseBlock(features, growth)
        self.rdb2 = DenseBlock(features, growth)
        self.rdb3 = DenseBlock(features, growth)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block. [B, C, H, W] -> the same shape."""
        return x + RESIDUAL_SCALE * self.rdb3(self.rdb2(self.rdb1(x)))


class DenseBlock(nn.Module):
    """Five convolutions; the input of each is the block's input and all earlier outputs."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(features, growth)
        self.conv2 = conv3x3(features + growth, growth)
        self.conv3 = conv3x3(features + 2 * growth, growth)
        self.conv4 = conv3x3(features + 3 * growth, growth)
        self.conv5 = conv3x3(features + 4 * growth, features)
        for conv in self.children():
            initialise_small(conv)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block. [B, C, H, W] -> the same shape."""
        features = x  # [B, C, H, W], plus G channels after each convolution
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            features = torch.cat([features, leaky_relu(conv(features))], dim=1)
        return x + RESIDUAL_SCALE * self.conv5(features)


def conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    """Build a 3x3 convolution with padding 1."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


def leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU with the slope of the original, in place."""
    return F.leaky_relu(x, negative_slope=0.2, inplace=True)


@torch.no_grad()
def initialise_small(conv: nn.Module) -> None:
    """Initialise at a tenth of Kaiming's scale, so that a deep stack starts near the identity."""
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    nn.init.kaiming_normal_(conv.weight)
    conv.weight.mul_(0.1)
    conv.bias.zero_()
