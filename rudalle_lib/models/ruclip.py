"""ruCLIP: a common feature space of images and Russian texts.

Paper: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
arXiv 2103.00020. Source: ai-forever/ru-clip (after openai/CLIP), `ruclip/model.py`.
Parameter names are those of the published checkpoints.

Shape legend: B batch, D width, E embed_dim, T text length, P patches of an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from rudalle_lib.models.layers.onednn_linear import fastest_linear, use_fastest_linears

IMAGE_CHANNELS = 3
"""Colour channels of an image: RGB."""

PUBLISHED_HEAD_SIZE = 64
"""Width of an attention head in the image towers of the published models."""


@dataclass(frozen=True)
class RuClipConfig:
    """Sizes of a `RuClip`, named as in the published `config.json`.

    The defaults are ruclip-vit-base-patch32-224.

    Args:
        embed_dim: width of the features.
        image_resolution: side of the images in pixels.
        vision_layers: blocks of the image tower.
        vision_width: width of the image tower.
        vision_patch_size: side of a patch in pixels; must divide `image_resolution`.
        vision_heads: attention heads of the image tower; None for heads of width 64.
        context_length: maximum number of text ids.
        vocab_size: number of text ids.
        transformer_width: width of the text tower.
        transformer_heads: attention heads of the text tower.
        transformer_layers: blocks of the text tower.
        eos_id: id of the end of a text, whose position provides the text's features.
        mean: per colour channel of images in [0, 1], for `(image - mean) / std`.
        std: the same.

    Raises:
        ValueError: the sizes do not fit together.
    """

    embed_dim: int = 512
    image_resolution: int = 224
    vision_layers: int = 12
    vision_width: int = 768
    vision_patch_size: int = 32
    vision_heads: int | None = None
    context_length: int = 77
    vocab_size: int = 49408
    transformer_width: int = 512
    transformer_heads: int = 8
    transformer_layers: int = 12
    eos_id: int = 3
    mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073)
    std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        if self.image_resolution % self.vision_patch_size:
            raise ValueError(
                f"vision_patch_size={self.vision_patch_size} must divide "
                f"image_resolution={self.image_resolution}"
            )
        check_heads("vision_width", self.vision_width, self.image_heads)
        check_heads("transformer_width", self.transformer_width, self.transformer_heads)

    @property
    def image_heads(self) -> int:
        """Attention heads of the image tower."""
        if self.vision_heads is not None:
            return self.vision_heads
        return self.vision_width // PUBLISHED_HEAD_SIZE

    @property
    def num_patches(self) -> int:
        """Patches per image, without the class position."""
        return int((self.image_resolution // self.vision_patch_size) ** 2)


class RuClip(nn.Module):
    """An image tower `visual` and a causal text transformer with a projection."""

    def __init__(self, config: RuClipConfig) -> None:
        super().__init__()
        self.config = config
        width = config.transformer_width
        self.visual = VisionTransformer(config)
        self.transformer = Transformer(
            width, config.transformer_layers, config.transformer_heads, causal=True
        )
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.randn(config.context_length, width) * 0.01)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, config.embed_dim) * width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Encode normalised images float [B, 3, R, R] to features [B, E], not of unit length.

        Raises:
            ValueError: the images have another shape.
        """
        side = self.config.image_resolution
        if pixels.shape[1:] != (IMAGE_CHANNELS, side, side):
            raise ValueError(
                f"expected images [B, 3, {side}, {side}], found {list(pixels.shape)}; "
                "resize and crop them to image_resolution"
            )
        return self.visual(pixels)

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """Encode text ids int64 [B, T <= context_length] to features [B, E], not of unit length.

        The features are those at the first `eos_id` of each row; later ids are ignored.

        Raises:
            ValueError: there are too many ids, or a row has no `eos_id`.
        """
        position = self._eos_positions(input_ids)
        input_ids = input_ids[:, : int(position.max()) + 1]  # attention is causal
        hidden = self.token_embedding(input_ids)  # [B, T, D]
        hidden = hidden + self.positional_embedding[: input_ids.shape[1]]
        hidden = self.transformer(hidden)
        at_eos = hidden[torch.arange(len(hidden), device=hidden.device), position]  # [B, D]
        return self.ln_final(at_eos) @ self.text_projection

    def forward(self, input_ids: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Compare texts and images.

        Args:
            input_ids: int64 [N_texts, T].
            pixels: float [N_images, 3, R, R], normalised.

        Returns:
            Scaled cosine similarities [N_images, N_texts] and their transpose.
        """
        image_features = F.normalize(self.encode_image(pixels), dim=-1)
        text_features = F.normalize(self.encode_text(input_ids), dim=-1)
        logits_per_image = self.logit_scale.exp() * image_features @ text_features.t()
        return logits_per_image, logits_per_image.t()

    def _eos_positions(self, input_ids: Tensor) -> Tensor:
        """The position of the first EOS in each row, int64 [B]."""
        length = input_ids.shape[1]
        if length > self.config.context_length:
            raise ValueError(
                f"expected at most {self.config.context_length} ids per text, found {length}"
            )
        is_eos = input_ids == self.config.eos_id
        missing = (~is_eos.any(dim=1)).nonzero().flatten().tolist()
        if missing:
            raise ValueError(
                f"no end-of-text id {self.config.eos_id} in text rows {missing[:5]}; "
                "encode texts with the tokenizer's encode_clip"
            )
        return is_eos.int().argmax(dim=1)


class VisionTransformer(nn.Module):
    """Maps normalised images [B, 3, R, R] to features [B, E], taken at the class position."""

    def __init__(self, config: RuClipConfig) -> None:
        super().__init__()
        width, patch = config.vision_width, config.vision_patch_size
        scale = width**-0.5
        self.conv1 = nn.Conv2d(IMAGE_CHANNELS, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(config.num_patches + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, config.vision_layers, config.image_heads)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, config.embed_dim))

    def forward(self, pixels: Tensor) -> Tensor:
        """Apply the tower. [B, 3, R, R] -> [B, E]."""
        patches = rearrange(self.conv1(pixels.to(self.conv1.weight.dtype)), "b d h w -> b (h w) d")
        class_position = repeat(self.class_embedding, "d -> b 1 d", b=len(patches))
        hidden = torch.cat([class_position, patches], dim=1)  # [B, 1 + P, D]
        hidden = self.transformer(self.ln_pre(hidden + self.positional_embedding))
        return self.ln_post(hidden[:, 0]) @ self.proj  # [B, E]


class Transformer(nn.Module):
    """A stack of pre-norm blocks on [B, T, D]."""

    def __init__(self, width: int, layers: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(
            *(Block(width, layers, heads, causal) for _ in range(layers))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the blocks. [B, T, D] -> the same shape."""
        return self.resblocks(x)


class Block(nn.Module):
    """Self-attention and an MLP of four times the width, both pre-norm residual branches."""

    def __init__(self, width: int, layers: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.attn = SelfAttention(width, heads, causal)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        self.ln_2 = nn.LayerNorm(width)
        self._initialise(width, layers)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block. [B, T, D] -> the same shape."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))

    def _initialise(self, width: int, layers: int) -> None:
        """CLIP's scales: the output of each branch shrinks with the number of layers."""
        residual_std = width**-0.5 * (2 * layers) ** -0.5
        nn.init.normal_(self.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(self.attn.out_proj.weight, std=residual_std)
        nn.init.normal_(self.mlp.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(self.mlp.c_proj.weight, std=residual_std)


class SelfAttention(nn.Module):
    """Multi-head self-attention, parameters named as in `torch.nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.fast_in_proj: nn.Module | None = None
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer. [B, T, D] -> the same shape."""
        if self.fast_in_proj is not None:
            projected = self.fast_in_proj(x)  # [B, T, 3 D]
        else:
            projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = rearrange(projected, "b t (three n d) -> three b n t d", three=3, n=self.heads)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(rearrange(attended, "b n t d -> b t (n d)"))


class Mlp(nn.Module):
    """Linear, QuickGELU (x * sigmoid(1.702 x)), linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer. [B, T, D] -> the same shape."""
        hidden = self.c_fc(x)
        return self.c_proj(hidden * torch.sigmoid(1.702 * hidden))


def optimize_for_inference(network: nn.Module) -> None:
    """Replace linear layers by the fastest ones for inference, in place; see `fastest_linear`."""
    use_fastest_linears(network)
    for part in network.modules():
        if isinstance(part, SelfAttention):
            part.fast_in_proj = fastest_linear(part.in_proj_weight, part.in_proj_bias)


def check_heads(name: str, width: int, heads: int) -> None:
    """Check that a number of heads divides a width.

    Raises:
        ValueError: it does not.
    """
    if heads < 1 or width % heads:
        raise ValueError(f"{name}={width} must be a multiple of its {heads} attention heads")
