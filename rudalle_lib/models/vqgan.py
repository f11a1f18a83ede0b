"""Gumbel VQ-GAN: 256-px images to 32x32 codebook tokens and back (and its DWT decoder).

Paper: Esser, Rombach, Ommer, "Taming Transformers for High-Resolution Image Synthesis",
arXiv 2012.09841; Gumbel quantisation: Jang, Gu, Poole, arXiv 1611.01144.
Source: CompVis/taming-transformers and ai-forever/ru-dalle (`vqgan.gumbelf8-sber`, `-dwt`).
Parameter names are those of the published checkpoints.

Shape legend: B batch, H W image, h w token grid (H/f, W/f), C channels, E embed_dim, N codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rudalle_lib.models.haar import HAAR_BANDS, IMAGE_CHANNELS, InverseHaar
from rudalle_lib.models.layers.group_norm import normalise
from rudalle_lib.models.layers.mixed_precision import conv_in_strips, use_dtype
from rudalle_lib.models.layers.one_by_one import one_by_one
from rudalle_lib.models.vqgan_blocks import (
    AttentionBlock,
    Downsample,
    Middle,
    ResidualBlock,
    Upsample,
    group_norm,
)


@dataclass(frozen=True)
class VqGanConfig:
    """Sizes of a `VqGan`; the defaults are the published f8 model.

    Args:
        resolution: side in pixels from which `attention_resolutions` are counted; the network
            accepts other sizes too.
        ch: width of the finest level; the width of level i is `ch * ch_mult[i]`.
        ch_mult: one multiplier per level; each step between levels halves the side.
        num_res_blocks: residual blocks per encoder level; decoder levels have one more.
        attention_resolutions: sides at which each residual block is followed by attention. The
            middle of encoder and decoder always has one attention block.
        z_channels: channels between encoder and `quant_conv`, and into the decoder.
        embed_dim: channels of the quantised features and of each code.
        n_embed: number of codes.
        norm_groups: groups of every GroupNorm; must divide every width.
        decoder_ch: as `ch`, for a decoder whose widths differ from the encoder's.
        decoder_ch_mult: as `ch_mult`, for the same.
        dwt: whether the decoder predicts Haar wavelet bands, which doubles the side of its images.

    Raises:
        ValueError: `norm_groups` does not divide a width, or encoder and decoder have different
            numbers of levels.
    """

    resolution: int = 256
    ch: int = 128
    ch_mult: Sequence[int] = (1, 1, 2, 4)
    num_res_blocks: int = 2
    attention_resolutions: Sequence[int] = (32,)
    z_channels: int = 256
    embed_dim: int = 256
    n_embed: int = 8192
    norm_groups: int = 32
    decoder_ch: int | None = None
    decoder_ch_mult: Sequence[int] | None = None
    dwt: bool = False

    def __post_init__(self) -> None:
        for widths in (self.encoder_widths, self.decoder_widths):
            wrong = [width for width in widths if width % self.norm_groups]
            if wrong:
                raise ValueError(
                    f"norm_groups={self.norm_groups} must divide every width, found {wrong} "
                    f"in {list(widths)}; change norm_groups, ch or ch_mult"
                )
        if len(self.encoder_widths) != len(self.decoder_widths):
            raise ValueError(
                "encoder and decoder must have the same number of levels, found "
                f"{len(self.encoder_widths)} and {len(self.decoder_widths)}; "
                "change ch_mult or decoder_ch_mult"
            )

    @property
    def encoder_widths(self) -> tuple[int, ...]:
        """Channels of each encoder level, finest first."""
        return tuple(self.ch * mult for mult in self.ch_mult)

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels of each decoder level, finest first."""
        ch = self.ch if self.decoder_ch is None else self.decoder_ch
        mults = self.ch_mult if self.decoder_ch_mult is None else self.decoder_ch_mult
        return tuple(ch * mult for mult in mults)

    @property
    def downsampling(self) -> int:
        """Side of a token in pixels of the encoder's input (8 in the published model)."""
        return int(2 ** (len(self.ch_mult) - 1))

    def has_attention(self, level: int) -> bool:
        """Whether attention follows the residual blocks of a level (0 is the finest)."""
        return self.resolution // 2**level in self.attention_resolutions


class VqGan(nn.Module):
    """Encoder, codebook and decoder. Images are float RGB in [-1, 1], tokens int64 in [0, N)."""

    def __init__(self, config: VqGanConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder: nn.Module = DwtDecoder(config) if config.dwt else Decoder(config)
        self.quantize = GumbelQuantizer(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        # The DWT model uses its own instead, but its checkpoint contains this one too.
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    def use_dtype(self, dtype: torch.dtype) -> None:
        """Decode in a dtype, except for the last layers; see `mixed_precision`.

        The encoder stays in float32, because codes are close together.
        """
        use_dtype(self.decoder, dtype, keep_float32=("conv_out", "idwt"))
        use_dtype(self.post_quant_conv, dtype)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images float [B, 3, H, W] in [-1, 1] to tokens int64 [B, h, w].

        Raises:
            ValueError: the shape is wrong, or a side is not a multiple of `downsampling`.
        """
        return self.code_logits(self.encode_features(images)).argmax(dim=1)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Decode tokens int64 [B, h, w] to images float [B, 3, H, W], clamped to [-1, 1].

        H is h * f, or twice that for the DWT model; f is `VqGanConfig.downsampling`.
        """
        return one_by_one(self._decode, tokens)

    def _decode(self, tokens: Tensor) -> Tensor:
        return self.decode_features(self.embed_codes(tokens)).clamp(-1.0, 1.0)

    def encode_features(self, images: Tensor) -> Tensor:
        """Encode images float [B, 3, H, W] in [-1, 1] to features [B, E, h, w], not quantised.

        Raises:
            ValueError: the shape is wrong, or a side is not a multiple of `downsampling`.
        """
        factor = self.config.downsampling
        if images.ndim != 4 or images.shape[1] != IMAGE_CHANNELS:
            raise ValueError(f"expected images [B, 3, H, W], found {list(images.shape)}")
        if images.shape[2] % factor or images.shape[3] % factor:
            raise ValueError(
                f"expected image sides divisible by {factor}, found {list(images.shape[2:])}; "
                "crop or resize them first"
            )
        return self.quant_conv(self.encoder(images))

    def code_logits(self, features: Tensor) -> Tensor:
        """Compute one logit per code: [B, E, h, w] -> [B, N, h, w]. The token is the argmax."""
        return self.quantize.proj(features)

    def embed_codes(self, tokens: Tensor) -> Tensor:
        """Look up the codes of tokens: int64 [B, h, w] -> [B, E, h, w]."""
        codes: Tensor = self.quantize.embed(tokens)  # [B, h, w, E]
        return codes.permute(0, 3, 1, 2)

    def decode_features(self, quantised: Tensor) -> Tensor:
        """Decode quantised features [B, E, h, w] to images [B, 3, H, W], not clamped."""
        quantised = quantised.to(self.post_quant_conv.weight.dtype)
        if not self.config.dwt:
            quantised = self.post_quant_conv(quantised)
        return self.decoder(quantised)


class GumbelQuantizer(nn.Module):
    """The codebook `embed` [N, E] and the 1x1 convolution `proj` that computes the codes' logits.

    Trained with Gumbel-softmax samples; at inference the code is the argmax. A nearest-neighbour
    codebook e with code costs -s * log p is the special case of weight 2e and bias
    -|e|^2 + s * log p.
    """

    def __init__(self, config: VqGanConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.embed_dim, config.n_embed, 1)
        self.embed = nn.Embedding(config.n_embed, config.embed_dim)


class Encoder(nn.Module):
    """Maps images [B, 3, H, W] to features [B, z_channels, h, w]."""

    def __init__(self, config: VqGanConfig) -> None:
        super().__init__()
        widths = config.encoder_widths
        self.conv_in = nn.Conv2d(IMAGE_CHANNELS, config.ch, 3, padding=1)
        self.down = nn.ModuleList(
            EncoderLevel(config, level, width_in)
            for level, width_in in enumerate((config.ch, *widths[:-1]))
        )
        self.mid = Middle(widths[-1], config.norm_groups)
        self.norm_out = group_norm(widths[-1], config.norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Apply the encoder. [B, 3, H, W] -> [B, z_channels, h, w]."""
        hidden = self.conv_in(images)
        for level in self.down:
            hidden = level(hidden)  # halves the side, except in the last level
        hidden = normalise(self.norm_out, self.mid(hidden))
        return self.conv_out(hidden)


class EncoderLevel(nn.Module):
    """Residual blocks, then downsampling by 2 except in the coarsest level."""

    def __init__(self, config: VqGanConfig, level: int, width_in: int) -> None:
        super().__init__()
        width = config.encoder_widths[level]
        self.block, self.attn = residual_stack(
            config, level, width_in, width, config.num_res_blocks
        )
        last = level == len(config.encoder_widths) - 1
        self.downsample: nn.Module = nn.Identity() if last else Downsample(width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply the level. [B, C_in, H, W] -> [B, C, H/2, W/2]; the coarsest keeps its side."""
        return self.downsample(run_stack(self.block, self.attn, hidden))


class Decoder(nn.Module):
    """Maps quantised features [B, z_channels, h, w] to images, or to 12 wavelet bands for DWT."""

    def __init__(self, config: VqGanConfig) -> None:
        super().__init__()
        widths = config.decoder_widths
        out_channels = IMAGE_CHANNELS * (HAAR_BANDS if config.dwt else 1)
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config.norm_groups)
        self.up = nn.ModuleList(
            DecoderLevel(config, level, width_in)
            for level, width_in in enumerate((*widths[1:], widths[-1]))
        )
        self.norm_out = group_norm(widths[0], config.norm_groups)
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, quantised: Tensor) -> Tensor:
        """Apply the decoder. [B, z_channels, h, w] -> [B, 3, H, W], or [B, 12, H, W] for DWT."""
        hidden = self.mid(self.conv_in(quantised))
        for level in reversed(self.up):  # finest first, as in the checkpoint
            hidden = level(hidden)
        hidden = normalise(self.norm_out, hidden)
        return conv_in_strips(self.conv_out, hidden)


class DecoderLevel(nn.Module):
    """Residual blocks, then upsampling by 2 except in the finest level."""

    def __init__(self, config: VqGanConfig, level: int, width_in: int) -> None:
        super().__init__()
        width = config.decoder_widths[level]
        self.block, self.attn = residual_stack(
            config, level, width_in, width, config.num_res_blocks + 1
        )
        self.upsample: nn.Module = nn.Identity() if level == 0 else Upsample(width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply the level. [B, C_in, H, W] -> [B, C, 2H, 2W]; the finest keeps its side."""
        return self.upsample(run_stack(self.block, self.attn, hidden))


class DwtDecoder(nn.Module):
    """A decoder of Haar wavelet bands and the inverse transform, which doubles the side."""

    def __init__(self, config: VqGanConfig) -> None:
        super().__init__()
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)
        self.decoder = Decoder(config)
        self.idwt = InverseHaar()

    def forward(self, quantised: Tensor) -> Tensor:
        """Apply the decoder. [B, E, h, w] -> [B, 3, 2H, 2W]."""
        bands = self.decoder(self.post_quant_conv(quantised))  # [B, 12, H, W]
        return self.idwt(bands)  # [B, 3, 2H, 2W]


def residual_stack(
    config: VqGanConfig, level: int, width_in: int, width: int, count: int
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Build `count` residual blocks and, if the level has attention, as many attention blocks."""
    groups = config.norm_groups
    blocks = nn.ModuleList(
        ResidualBlock(width_in if index == 0 else width, width, groups) for index in range(count)
    )
    attended = count if config.has_attention(level) else 0
    return blocks, nn.ModuleList(AttentionBlock(width, groups) for _ in range(attended))


def run_stack(blocks: nn.ModuleList, attentions: nn.ModuleList, hidden: Tensor) -> Tensor:
    """Apply residual blocks, each followed by its attention block if there are any."""
    for index, block in enumerate(blocks):
        hidden = block(hidden)
        if attentions:
            hidden = attentions[index](hidden)
    return hidden
