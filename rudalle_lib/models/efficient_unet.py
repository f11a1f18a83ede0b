"""A U-Net over an EfficientNet: which pixels of a picture belong to which class.

Papers: Ronneberger et al., "U-Net", arXiv 1505.04597; Tan and Le, "EfficientNet", arXiv 1905.11946.
Original: qubvel/segmentation_models.pytorch 0.1.3 with lukemelas/EfficientNet-PyTorch 0.6.3, in
which the published network was trained; parameter names are theirs. Its fixed paddings are those
of "same" convolutions over even sides, which is what all sides here are.

Shape legend: B batch, H W picture, C channels, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PICTURE_CHANNELS = 3
STEM_CHANNELS = 32
CHANNEL_STEP = 8
SQUEEZE = 4
"""A block's channels for each channel that its squeeze-and-excitation works with."""
ENCODER_EPS = 1e-3

SIDE_MULTIPLE = 32
"""The encoder halves a picture five times."""


class Stage(NamedTuple):
    """Blocks of one kind in EfficientNet-B0; the first of them has the stride."""

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
PASSED_ON = (1, 2, 4, 6)
"""Stages whose result goes to the decoder, besides that of the stem."""


@dataclass(frozen=True)
class EfficientUnetConfig:
    """Sizes of an `EfficientUnet`; the defaults are an EfficientNet-B5 and two classes.

    Attributes:
        width: factor of the channels of EfficientNet-B0.
        depth: factor of its blocks.
        decoder_channels: after each of the five enlargements.
        classes: that pixels are told apart into.
    """

    width: float = 1.6
    depth: float = 2.2
    decoder_channels: tuple[int, ...] = (256, 128, 64, 32, 16)
    classes: int = 2

    def __post_init__(self) -> None:
        if len(self.decoder_channels) != 5:
            raise ValueError(f"expected five decoder_channels, found {self.decoder_channels}")

    def channels(self, base: int) -> int:
        """Channels of the base network, widened and rounded to a multiple of eight."""
        wanted = base * self.width
        rounded = max(CHANNEL_STEP, int(wanted + CHANNEL_STEP / 2) // CHANNEL_STEP * CHANNEL_STEP)
        return rounded if rounded >= 0.9 * wanted else rounded + CHANNEL_STEP

    def blocks(self, base: int) -> int:
        """Blocks of a stage of the base network, deepened."""
        return math.ceil(base * self.depth)

    @property
    def encoder_channels(self) -> tuple[int, ...]:
        """Of the five maps that the encoder passes on, the largest map first."""
        bases = (STEM_CHANNELS, *(STAGES[stage].channels for stage in PASSED_ON))
        return tuple(self.channels(base) for base in bases)


class EfficientUnet(nn.Module):
    """Tells the pixels of RGB pictures apart into classes."""

    def __init__(self, config: EfficientUnetConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        last = config.decoder_channels[-1]
        self.segmentation_head = nn.Sequential(nn.Conv2d(last, config.classes, 3, padding=1))

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures float [B, 3, H, W] in [0, 1] to logits [B, K, H, W].

        H and W must be multiples of 32.
        """
        height, width = pictures.shape[-2:]
        if height % SIDE_MULTIPLE or width % SIDE_MULTIPLE:
            raise ValueError(
                f"sides must be multiples of {SIDE_MULTIPLE}, found {width} x {height}"
            )
        logits: Tensor = self.segmentation_head(self.decoder(self.encoder(pictures)))
        return logits


class Encoder(nn.Module):
    """EfficientNet without its classifier."""

    def __init__(self, config: EfficientUnetConfig) -> None:
        super().__init__()
        channels = config.channels(STEM_CHANNELS)
        self._conv_stem = SameConv(PICTURE_CHANNELS, channels, 3, stride=2)
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
        self.passed_on = tuple(ends[stage] - 1 for stage in PASSED_ON)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Maps of 1/2, 1/4, 1/8, 1/16 and 1/32 of the picture's sides."""
        x = F.silu(self._bn0(self._conv_stem(pictures)))
        maps = [x]
        for number, block in enumerate(self._blocks):
            x = block(x)
            if number in self.passed_on:
                maps.append(x)
        return maps


class Block(nn.Module):
    """A mobile inverted bottleneck with squeeze-and-excitation.

    The `first` of a stage has its stride, and adds nothing to what it was given.
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
        """[B, C, H, W] to [B, C', H / stride, W / stride]."""
        inner = F.silu(self._bn0(self._expand_conv(x))) if self.expands else x
        inner = F.silu(self._bn1(self._depthwise_conv(inner)))
        mean = inner.mean((2, 3), keepdim=True)  # [B, C, 1, 1]
        inner = inner * self._se_expand(F.silu(self._se_reduce(mean))).sigmoid()
        inner = self._bn2(self._project_conv(inner))
        return inner + x if self.residual else inner


class SameConv(nn.Conv2d):
    """A convolution that keeps, or exactly halves, even sides; what is odd is padded behind."""

    def __init__(
        self, channels: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(channels, channels_out, kernel, stride, groups=groups, bias=False)
        before, behind = (kernel - stride) // 2, (kernel - stride + 1) // 2
        self.edges = (before, behind, before, behind)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H / stride, W / stride]."""
        return super().forward(F.pad(x, self.edges))


class Decoder(nn.Module):
    """From the smallest map back to the picture's size, with the encoder's maps beside it."""

    def __init__(self, config: EfficientUnetConfig) -> None:
        super().__init__()
        deepest, *skipped = reversed(config.encoder_channels)
        inputs = (deepest, *config.decoder_channels)
        self.blocks = nn.ModuleList(
            DecoderBlock(channels + beside, channels_out)
            for channels, beside, channels_out in zip(
                inputs, (*skipped, 0), config.decoder_channels, strict=False
            )
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        """The encoder's maps to [B, C, H, W]."""
        x, *skipped = reversed(maps)
        for number, block in enumerate(self.blocks):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            if number < len(skipped):
                x = torch.cat((x, skipped[number]), dim=1)
            x = block(x)
        return x


class DecoderBlock(nn.Module):
    """Two convolutions."""

    def __init__(self, channels: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = conv_norm(channels, channels_out)
        self.conv2 = conv_norm(channels_out, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H, W]."""
        return F.relu(self.conv2(F.relu(self.conv1(x))))


def conv_norm(channels: int, channels_out: int) -> nn.Sequential:
    """A 3x3 convolution and its normalisation."""
    return nn.Sequential(
        nn.Conv2d(channels, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out)
    )
