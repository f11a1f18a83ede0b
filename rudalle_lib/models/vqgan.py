"""Gumbel VQ-GAN: 256-px pictures to 32x32 codebook tokens and back (and its DWT decoder).

Paper: Esser, Rombach, Ommer, "Taming Transformers for High-Resolution Image Synthesis",
arXiv 2012.09841; Gumbel quantisation: Jang, Gu, Poole, arXiv 1611.01144.
Original: CompVis/taming-transformers and ai-forever/ru-dalle (`vqgan.gumbelf8-sber`, `-dwt`).
Parameter names are those of the published checkpoints.

Shape legend: B batch, H W picture, h w = H/f W/f token grid, C channels, E embed_dim, N codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rudalle_lib.models.doubling_conv import DoublingConv
from rudalle_lib.models.haar import HAAR_BANDS, PICTURE_CHANNELS, InverseHaar
from rudalle_lib.models.one_by_one import one_by_one
from rudalle_lib.models.precision import in_strips, use_dtype


@dataclass(frozen=True)
class VqGanConfig:
    """Sizes of a `VqGan`; the defaults are the published f8 model.

    Attributes:
        resolution: side in pixels the attention levels are counted from; other sizes work too.
        ch: width of the finest level; level i is `ch * ch_mult[i]` wide.
        ch_mult: one multiplier a level; each step between levels halves the side.
        num_res_blocks: residual blocks an encoder level (the decoder has one more).
        attention_resolutions: sides at which every residual block is followed by attention. The
            middle of either half always has one attention block.
        z_channels: channels between encoder and `quant_conv`, and into the decoder.
        embed_dim: channels of the quantised features and of each code.
        n_embed: number of codes.
        norm_groups: groups of every GroupNorm; must divide every width.
        decoder_ch, decoder_ch_mult: decoder widths where they differ from the encoder's.
        dwt: the decoder gives Haar wavelet bands, so pictures come out at twice the side.
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
            odd = [width for width in widths if width % self.norm_groups]
            if odd:
                raise ValueError(
                    f"norm_groups={self.norm_groups} must divide every width, found {odd} "
                    f"in {list(widths)}; change norm_groups, ch or ch_mult"
                )
        if len(self.encoder_widths) != len(self.decoder_widths):
            raise ValueError(
                f"encoder and decoder need equally many levels, found {len(self.encoder_widths)} "
                f"and {len(self.decoder_widths)}; change ch_mult or decoder_ch_mult"
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
        """Pixels of encoder input along one side of a token (8 in the published model)."""
        return int(2 ** (len(self.ch_mult) - 1))

    def has_attention(self, level: int) -> bool:
        """Whether the residual blocks of this level (0 is the finest) are followed by attention."""
        return self.resolution // 2**level in self.attention_resolutions


class VqGan(nn.Module):
    """Encoder, codebook and decoder. Pictures are float RGB in [-1, 1], tokens int64 in [0, N)."""

    def __init__(self, config: VqGanConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder: nn.Module = DwtDecoder(config) if config.dwt else Decoder(config)
        self.quantize = GumbelQuantizer(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        # Unused by the DWT model, which has its own, but present in its checkpoint.
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    def use_dtype(self, dtype: torch.dtype) -> None:
        """Let the decoder work in a precision, but for its last layers; see `precision`.

        The encoder stays in float32, as codes lie close together.
        """
        use_dtype(self.decoder, dtype, exact=("conv_out", "idwt"))
        use_dtype(self.post_quant_conv, dtype)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Pictures float [B, 3, H, W] in [-1, 1] to tokens int64 [B, h, w]."""
        return self.code_logits(self.encode_features(images)).argmax(dim=1)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens int64 [B, h, w] to pictures float [B, 3, H, W], clamped to [-1, 1].

        H = h * f, twice that for the DWT model.
        """
        return one_by_one(self._decode, tokens)

    def _decode(self, tokens: Tensor) -> Tensor:
        return self.decode_features(self.embed_codes(tokens)).clamp(-1.0, 1.0)

    def encode_features(self, images: Tensor) -> Tensor:
        """Pictures float [B, 3, H, W] in [-1, 1] to features before quantising [B, E, h, w]."""
        factor = self.config.downsampling
        if images.ndim != 4 or images.shape[1] != PICTURE_CHANNELS:
            raise ValueError(f"expected pictures [B, 3, H, W], found {list(images.shape)}")
        if images.shape[2] % factor or images.shape[3] % factor:
            raise ValueError(
                f"expected picture sides divisible by {factor}, found {list(images.shape[2:])}; "
                "crop or resize them first"
            )
        return self.quant_conv(self.encoder(images))

    def code_logits(self, features: Tensor) -> Tensor:
        """Features [B, E, h, w] to one logit a code [B, N, h, w]; the token is the argmax."""
        return self.quantize.proj(features)

    def embed_codes(self, tokens: Tensor) -> Tensor:
        """Tokens int64 [B, h, w] to their codes [B, E, h, w]."""
        codes: Tensor = self.quantize.embed(tokens)  # [B, h, w, E]
        return codes.permute(0, 3, 1, 2)

    def decode_features(self, quantised: Tensor) -> Tensor:
        """Quantised features [B, E, h, w] to pictures [B, 3, H, W], not clamped."""
        quantised = quantised.to(self.post_quant_conv.weight.dtype)
        if not self.config.dwt:
            quantised = self.post_quant_conv(quantised)
        return self.decoder(quantised)


class GumbelQuantizer(nn.Module):
    """The codebook `embed` [N, E] and the 1x1 convolution `proj` that gives each code's logit.

    Trained with Gumbel-softmax samples; at inference the code is the argmax. A nearest-neighbour
    codebook e with code prices -s * log p is the special case weight 2e, bias -|e|^2 + s * log p.
    """

    def __init__(self, config: VqGanConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.embed_dim, config.n_embed, 1)
        self.embed = nn.Embedding(config.n_embed, config.embed_dim)


class Encoder(nn.Module):
    """Pictures [B, 3, H, W] to [B, z_channels, h, w]."""

    def __init__(self, config: VqGanConfig) -> None:
        super().__init__()
        widths = config.encoder_widths
        self.conv_in = nn.Conv2d(PICTURE_CHANNELS, config.ch, 3, padding=1)
        self.down = nn.ModuleList(
            EncoderLevel(config, level, width_in)
            for level, width_in in enumerate((config.ch, *widths[:-1]))
        )
        self.mid = Middle(widths[-1], config.norm_groups)
        self.norm_out = group_norm(widths[-1], config.norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] to [B, z_channels, h, w]."""
        hidden = self.conv_in(images)
        for level in self.down:
            hidden = level(hidden)  # side halves, but for the last level
        hidden = silu(self.norm_out(self.mid(hidden)))
        return self.conv_out(hidden)


class EncoderLevel(nn.Module):
    """Residual blocks at one side, then, but for the coarsest level, a step to half the side."""

    def __init__(self, config: VqGanConfig, level: int, width_in: int) -> None:
        super().__init__()
        width = config.encoder_widths[level]
        self.block, self.attn = residual_stack(
            config, level, width_in, width, config.num_res_blocks
        )
        last = level == len(config.encoder_widths) - 1
        self.downsample: nn.Module = nn.Identity() if last else Downsample(width)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, C_in, H, W] to [B, C, H/2, W/2]; the coarsest level keeps its side."""
        return self.downsample(run_stack(self.block, self.attn, hidden))


class Decoder(nn.Module):
    """Quantised features [B, z_channels, h, w] to pictures, or 12 wavelet bands for DWT."""

    def __init__(self, config: VqGanConfig) -> None:
        super().__init__()
        widths = config.decoder_widths
        out_channels = PICTURE_CHANNELS * (HAAR_BANDS if config.dwt else 1)
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config.norm_groups)
        self.up = nn.ModuleList(
            DecoderLevel(config, level, width_in)
            for level, width_in in enumerate((*widths[1:], widths[-1]))
        )
        self.norm_out = group_norm(widths[0], config.norm_groups)
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, quantised: Tensor) -> Tensor:
        """[B, z_channels, h, w] to [B, 3, H, W], or for DWT [B, 12, H, W]."""
        hidden = self.mid(self.conv_in(quantised))
        for level in reversed(self.up):  # the list is finest first, as in the checkpoint
            hidden = level(hidden)
        hidden = silu(self.norm_out(hidden))
        return in_strips(self.conv_out, hidden)


class DecoderLevel(nn.Module):
    """Residual blocks at one side, then, but for the finest level, a step to twice the side."""

    def __init__(self, config: VqGanConfig, level: int, width_in: int) -> None:
        super().__init__()
        width = config.decoder_widths[level]
        self.block, self.attn = residual_stack(
            config, level, width_in, width, config.num_res_blocks + 1
        )
        self.upsample: nn.Module = nn.Identity() if level == 0 else Upsample(width)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, C_in, H, W] to [B, C, 2H, 2W]; the finest level keeps its side."""
        return self.upsample(run_stack(self.block, self.attn, hidden))


class DwtDecoder(nn.Module):
    """A decoder of Haar wavelet bands and their inverse transform: pictures at twice the side."""

    def __init__(self, config: VqGanConfig) -> None:
        super().__init__()
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)
        self.decoder = Decoder(config)
        self.idwt = InverseHaar()

    def forward(self, quantised: Tensor) -> Tensor:
        """[B, E, h, w] to pictures [B, 3, 2H, 2W]."""
        bands = self.decoder(self.post_quant_conv(quantised))  # [B, 12, H, W]
        return self.idwt(bands)  # [B, 3, 2H, 2W]


class Middle(nn.Module):
    """Residual block, attention, residual block at the side of the tokens."""

    def __init__(self, width: int, norm_groups: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(width, width, norm_groups)
        self.attn_1 = AttentionBlock(width, norm_groups)
        self.block_2 = ResidualBlock(width, width, norm_groups)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, C, h, w] to the same shape."""
        return self.block_2(self.attn_1(self.block_1(hidden)))


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 convolution where widths differ."""

    def __init__(self, width_in: int, width_out: int, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(width_in, norm_groups)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = group_norm(width_out, norm_groups)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        same = width_in == width_out
        self.nin_shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] to [B, C_out, H, W]."""
        hidden = self.conv1(silu(self.norm1(x)))
        hidden = self.conv2(silu(self.norm2(hidden)))
        return hidden.add_(self.nin_shortcut(x))


class AttentionBlock(nn.Module):
    """One-head self-attention over all positions, added to its input."""

    def __init__(self, width: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = group_norm(width, norm_groups)
        self.q = nn.Conv2d(width, width, 1)
        self.k: nn.Module = nn.Conv2d(width, width, 1)
        self.v: nn.Module = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    @torch.no_grad()
    def fold(self) -> None:
        """Two products instead of four from now on; the weights must not change any more.

        As q.k = (k^T q).x, but for what is the same for all keys, and as p v x is the projection of
        the mean of x, the normed features themselves can be keys and values.
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
        """[B, C, h, w] to the same shape."""
        normed = self.norm(x)  # [B, C, h, w]
        q, k, v = (
            rearrange(conv(normed), "b c h w -> b 1 (h w) c") for conv in (self.q, self.k, self.v)
        )
        attended = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        attended = rearrange(attended, "b (h w) c -> b c h w", w=x.shape[3])
        return x + self.proj_out(attended)


class Downsample(nn.Module):
    """Half the side by a strided convolution; the one row of padding is below and right."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, H/2, W/2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the side: nearest neighbours, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = DoublingConv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, 2H, 2W]."""
        return self.conv(x)


def residual_stack(
    config: VqGanConfig, level: int, width_in: int, width: int, count: int
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """`count` residual blocks and their attention blocks (none where the level has none)."""
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


def silu(x: Tensor) -> Tensor:
    """SiLU, in place where nobody wants a gradient: a tensor less for every layer to fill."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def group_norm(width: int, groups: int) -> nn.GroupNorm:
    """GroupNorm with the original's epsilon."""
    return nn.GroupNorm(groups, width, eps=1e-6)
