"""ruCLIP Small, the first Russian CLIP: a ViT-B/32 image tower and a ruGPT-3 text tower.

Paper: Radford et al., arXiv 2103.00020; GPT-2: Radford et al., "Language Models are Unsupervised
Multitask Learners". Source: ai-forever/ru-clip, `deprecated/clip` (openai/CLIP and the GPT-2 of
transformers, each followed by a projection of two layers). Parameter names are those of the
published checkpoint. Left out: dropout, and the attention mask of texts, because pads come after
all ids that the features depend on.

Shape legend: B batch, T text length, C text width, E embed_dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rudalle_lib.models.ruclip import RuClipConfig, VisionTransformer, check_heads


@dataclass(frozen=True)
class RuClipSmallConfig:
    """Sizes of a `RuClipSmall`; those of the text tower are named as in GPT-2's `config.json`.

    Args:
        embed_dim: width of the features.
        image_resolution: side of the images in pixels.
        vision_layers: blocks of the image tower.
        vision_width: width of the image tower.
        vision_patch_size: side of a patch in pixels.
        vision_dim: width of the image tower's output, before its projection.
        vocab_size: number of text ids.
        n_positions: positions of the text tower.
        n_embd: width of the text tower.
        n_layer: blocks of the text tower.
        n_head: attention heads of the text tower.
        context_length: number of text ids, at most `n_positions`.
        eos_id: id of the end of a text, whose position provides the text's features.
        mean: per colour channel of images in [0, 1], for `(image - mean) / std`.
        std: the same.

    Raises:
        ValueError: the sizes do not fit together.
    """

    embed_dim: int = 1024
    image_resolution: int = 224
    vision_layers: int = 12
    vision_width: int = 768
    vision_patch_size: int = 32
    vision_dim: int = 512
    vocab_size: int = 50264
    n_positions: int = 2048
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    context_length: int = 128
    eos_id: int = 2
    mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073)
    std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        check_heads("n_embd", self.n_embd, self.n_head)
        if self.context_length > self.n_positions:
            raise ValueError(
                f"context_length={self.context_length} must be at most "
                f"n_positions={self.n_positions}"
            )

    @property
    def vision(self) -> RuClipConfig:
        """The image tower as a configuration of the newer ruCLIP, which has the same tower."""
        return RuClipConfig(
            embed_dim=self.vision_dim,
            image_resolution=self.image_resolution,
            vision_layers=self.vision_layers,
            vision_width=self.vision_width,
            vision_patch_size=self.vision_patch_size,
        )


class RuClipSmall(nn.Module):
    """Two towers with a projection each; has the same methods as `models.ruclip.RuClip`."""

    def __init__(self, config: RuClipSmallConfig) -> None:
        super().__init__()
        self.config = config
        self.visual_encoder = Encoder(VisionTransformer(config.vision), config.vision_dim, config)
        self.text_encoder = Encoder(Gpt2(config), config.n_embd, config)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Encode normalised images float [B, 3, R, R] to features [B, E], not of unit length.

        Raises:
            ValueError: the images have another shape.
        """
        side = self.config.image_resolution
        if pixels.shape[1:] != (3, side, side):
            raise ValueError(
                f"expected images [B, 3, {side}, {side}], found {list(pixels.shape)}; "
                "resize and crop them to image_resolution"
            )
        encoder = self.visual_encoder
        return encoder.projection(encoder.model(pixels))

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """Encode text ids int64 [B, T], T <= n_positions, to features [B, E], not of unit length.

        The features are those at the `eos_id` of each row.

        Raises:
            ValueError: there are too many ids, or a row does not have exactly one `eos_id`.
        """
        is_eos = input_ids == self.config.eos_id
        wrong = (is_eos.sum(dim=1) != 1).nonzero().flatten().tolist()
        if wrong or input_ids.shape[1] > self.config.n_positions:
            raise ValueError(
                f"expected at most {self.config.n_positions} ids per text, exactly one of them the "
                f"end-of-text id {self.config.eos_id}; found {input_ids.shape[1]} ids, and none or "
                f"several end-of-text ids in rows {wrong[:5]}"
            )
        encoder = self.text_encoder
        return encoder.projection(encoder.model(input_ids)[is_eos])

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


class Encoder(nn.Module):
    """A tower `model` and its `projection`, which `RuClipSmall` calls."""

    def __init__(self, tower: nn.Module, width: int, config: RuClipSmallConfig) -> None:
        super().__init__()
        self.model = tower
        self.projection = Projection(width, config.embed_dim)


class Projection(nn.Module):
    """norm(y + linear(quick_gelu(y))) with y = linear(x): [B, width] -> [B, E]."""

    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, embed_dim, bias=False)
        self.linear2 = nn.Linear(embed_dim, embed_dim, bias=False)
        self.layer_norm = nn.LayerNorm(embed_dim)

    def forward(self, features: Tensor) -> Tensor:
        """Apply the projection. [B, width] -> [B, E]."""
        first = self.linear1(features)
        second = self.linear2(first * torch.sigmoid(1.702 * first))
        return self.layer_norm(first + second)


class Gpt2(nn.Module):
    """The text tower: maps ids int64 [B, T] to hidden states [B, T, C]."""

    def __init__(self, config: RuClipSmallConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.Sequential(*(Gpt2Block(config) for _ in range(config.n_layer)))
        self.ln_f = nn.LayerNorm(config.n_embd)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Apply the tower. [B, T] -> [B, T, C]."""
        hidden = self.wte(input_ids) + self.wpe.weight[: input_ids.shape[1]]
        return self.ln_f(self.h(hidden))


class Gpt2Block(nn.Module):
    """Causal self-attention and an MLP of four times the width, both pre-norm residual branches."""

    def __init__(self, config: RuClipSmallConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Gpt2Attention(config.n_embd, config.n_head)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = Gpt2Mlp(config.n_embd)

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply the block. [B, T, C] -> the same shape."""
        hidden = hidden + self.attn(self.ln_1(hidden))
        return hidden + self.mlp(self.ln_2(hidden))


class Gpt2Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = TransposedLinear(width, 3 * width)
        self.c_proj = TransposedLinear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply the layer. [B, T, C] -> the same shape."""
        projected = self.c_attn(hidden)  # [B, T, 3 C]
        q, k, v = rearrange(projected, "b t (three n d) -> three b n t d", three=3, n=self.heads)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(rearrange(attended, "b n t d -> b t (n d)"))


class Gpt2Mlp(nn.Module):
    """Linear, GELU (tanh form), linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = TransposedLinear(width, 4 * width)
        self.c_proj = TransposedLinear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply the layer. [B, T, C] -> the same shape."""
        return self.c_proj(F.gelu(self.c_fc(hidden), approximate="tanh"))


class TransposedLinear(nn.Module):
    """A linear layer whose weight is [inputs, outputs], as in GPT-2 checkpoints."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.02)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer. [..., inputs] -> [..., outputs]."""
        return x @ self.weight + self.bias
