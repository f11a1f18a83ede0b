"""A U-Net with an EfficientNet encoder, for the segmentation of images.

Papers: Ronneberger et al., "U-Net", arXiv 1505.04597; Tan and Le, "EfficientNet", arXiv 1905.11946.
Source: qubvel/segmentation_models.pytorch 0.1.3 with lukemelas/EfficientNet-PyTorch 0.6.3, with
which the published network was trained; parameter names are theirs. The fixed paddings here equal
their "same" convolutions, because all sides are even.

Shape legend: B batch, H W image, C channels, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE_CHANNELS = 3
"""Colour channels of an image: RGB."""

STEM_CHANNELS = 32
"""Output channels of the first convolution of EfficientNet-B0."""

CHANNEL_STEP = 8
"""Scaled channel counts are rounded to a multiple of this."""

SQUEEZE = 4
"""Factor by which squeeze-and-excitation reduces a block's input channels."""

ENCODER_EPS = 1e-3
"""Epsilon of the encoder's batch norms."""

SIDE_MULTIPLE = 32
"""Image sides must be multiples of this, because the encoder halves them five times."""


class Stage(NamedTuple):
    """Consecutive blocks of one kind in EfficientNet-B0; only the first has the stride."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
"""The stages of EfficientNet-B0."""

SKIP_STAGES = (1, 2, 4, 6)
"""Stages whose output goes to the decoder, in addition to that of the stem."""


@dataclass(frozen=True)
class EfficientUnetConfig:
    """Sizes of an `EfficientUnet`; the defaults are an EfficientNet-B5 and two classes.

    Args:
        width: factor of EfficientNet-B0's channels.
        depth: factor of EfficientNet-B0's blocks.
        decoder_channels: output channels of the five decoder blocks.
        classes: number of classes.

    Raises:
        ValueError: there are not five `decoder_channels`.
    """

    width: float = 1.6
    depth: float = 2.2
    decoder_channels: tuple[int, ...] = (256, 128, 64, 32, 16)
    classes: int = 2

    def __post_init__(self) -> None:
        if len(self.decoder_channels) != 5:
            raise ValueError(f"expected five decoder_channels, found {self.decoder_channels}")

    def channels(self, base: int) -> int:
        """Scale a channel count of EfficientNet-B0 and round it to a multiple of `CHANNEL_STEP`."""
        exact = base * self.width
        rounded = max(CHANNEL_STEP, int(exact + CHANNEL_STEP / 2) // CHANNEL_STEP * CHANNEL_STEP)
        return rounded if rounded >= 0.9 * exact else rounded + CHANNEL_STEP

    def blocks(self, base: int) -> int:
        """Scale a number of blocks of EfficientNet-B0."""
        return math.ceil(base * self.depth)

    @property
    def encoder_channels(self) -> tuple[int, ...]:
        """Channels of the five maps that go to the decoder, from the largest map on."""
        bases = (STEM_CHANNELS, *(STAGES[stage].channels for stage in SKIP_STAGES))
        return tuple(self.channels(base) for base in bases)


class EfficientUnet(nn.Module):
    """Classifies each pixel of RGB images."""

    def __init__(self, config: EfficientUnetConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        last = config.decoder_channels[-1]
        self.segmentation_head = nn.Sequential(nn.Conv2d(last, config.classes, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """Classify pixels.

        Args:
            images: float [B, 3, H, W] in [0, 1]; H and W must be multiples of 32.

        Returns:
            Logits [B, K, H, W].

        Raises:
            ValueError: the sides are not multiples of 32.
        """
        height, width = images.shape[-2:]
        if height % SIDE_MULTIPLE or width % SIDE_MULTIPLE:
            raise ValueError(
                f"sides must be multiples of {SIDE_MULTIPLE}, found {width} x {height}"
            )
        logits: Tensor = self.segmentation_head(self.decoder(self.encoder(images)))
        return logits


class Encoder(nn.Module):
    """EfficientNet without its classifier."""

    def __init__(self, config: EfficientUnetConfig) -> None:
        super().__init__()
        channels = config.channels(STEM_CHANNELS)
        self._conv_stem = SameConv(IMAGE_CHANNELS, channels, 3, stride=2)
        self._bn0 = nn.BatchNorm2d(channels, eps=ENCODER_EPS)
        blocks: list[Block] = []
        ends: list[int] = []
        for stage in STAGES:
            for number in range(config.blocks(stage.blocks)):
                channels_out = config.channels(stage.channels)
                blocks.append(Block(channels, channels_out, stage, first=number == 0))
                channels = channels_out
            ends.append(len(blocks))
        self._blocks = nn.ModuleList(blocks)
        self.skip_blocks = tuple(ends[stage] - 1 for stage in SKIP_STAGES)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the image's sides."""
        x = F.silu(self._bn0(self._conv_stem(images)))
        maps = [x]
        for number, block in enumerate(self._blocks):
            x = block(x)
            if number in self.skip_blocks:
                maps.append(x)
        return maps


class Block(nn.Module):
    """A mobile inverted bottleneck with squeeze-and-excitation.

    The `first` block of a stage has its stride and no residual connection.
    """

    def __init__(self, channels: int, channels_out: int, stage: Stage, first: bool) -> None:
        super().__init__()
        stride = stage.stride if first else 1
        inner = channels * stage.expansion
        self.expands = stage.expansion != 1
        self.residual = not first
        if self.expands:
            self._expand_conv = nn.Conv2d(channels, inner, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(inner, eps=ENCODER_EPS)
        self._depthwise_conv = SameConv(inner, inner, stage.kernel, stride, groups=inner)
        self._bn1 = nn.BatchNorm2d(inner, eps=ENCODER_EPS)
        squeezed = max(1, channels // SQUEEZE)
        self._se_reduce = nn.Conv2d(inner, squeezed, 1)
        self._se_expand = nn.Conv2d(squeezed, inner, 1)
        self._project_conv = nn.Conv2d(inner, channels_out, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(channels_out, eps=ENCODER_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer. [B, C, H, W] -> [B, C', H / stride, W / stride]."""
        inner = F.silu(self._bn0(self._expand_conv(x))) if self.expands else x
        inner = F.silu(self._bn1(self._depthwise_conv(inner)))
        mean = inner.mean((2, 3), keepdim=True)  # [B, C, 1, 1]
        inner = inner * self._se_expand(F.silu(self._se_reduce(mean))).sigmoid()
        inner = self._bn2(self._project_conv(inner))
        return inner + x if self.residual else inner


class SameConv(nn.Conv2d):
    """A convolution that keeps or halves even sides; odd padding goes to the bottom and right."""

    def __init__(
        self, channels: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(channels, channels_out, kernel, stride, groups=groups, bias=False)
        before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
        self.edges = (before, after, before, after)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer. [B, C, H, W] -> [B, C', H / stride, W / stride]."""
        return super().forward(F.pad(x, self.edges))


class Decoder(nn.Module):
    """Upsamples from the smallest map to the image's size, with skip connections."""

    def __init__(self, config: EfficientUnetConfig) -> None:
        super().__init__()
        deepest, *skips = reversed(config.encoder_channels)
        inputs = (deepest, *config.decoder_channels)
        self.blocks = nn.ModuleList(
            DecoderBlock(channels + skip, channels_out)
            for channels, skip, channels_out in zip(
                inputs, (*skips, 0), config.decoder_channels, strict=False
            )
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Combine the encoder's maps into features [B, C, H, W]."""
        x, *skips = reversed(maps)
        for number, block in enumerate(self.blocks):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            if number < len(skips):
                x = torch.cat((x, skips[number]), dim=1)
            x = block(x)
        return x


class DecoderBlock(nn.Module):
    """Two convolutions, each with batch norm and ReLU."""

    def __init__(self, channels: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = conv_norm(channels, channels_out)
        self.conv2 = conv_norm(channels_out, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block. [B, C, H, W] -> [B, C', H, W]."""
        return F.relu(self.conv2(F.relu(self.conv1(x))))


def conv_norm(channels: int, channels_out: int) -> nn.Sequential:
    """Build a 3x3 convolution with padding 1, followed by batch norm."""
    return nn.Sequential(
        nn.Conv2d(channels, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out)
    )
