"""The ruDALL-E decoder: a causal transformer over text tokens, then image tokens.

It has sandwich layer norms and row, column and convolution attention. Parameter names are those of
the published checkpoints, so their state dicts load strictly once `STORED_MASKS` are left out.

Two layouts were published:

- v3: `[text (T)] [image (H * W)]`. The last text position predicts the first image token.
- v2: `[BOS] [text (T)] [image (H * W - 1)]`. The attention masks of the original ignore the BOS,
  so every layer treats the last text position as the first image cell and image token j as cell
  j + 1. Each cell predicts the image token of its own number.

In both layouts a sequence has T positions visible to all later ones and H * W cells.

Source: ai-forever/ru-dalle (`rudalle/dalle`), after Ramesh et al., arXiv:2102.12092, and
CogView, arXiv:2105.13290. Left out: dropout, and the scaled gradient of the embeddings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from rudalle_lib.models.layers.compiled_linear import CompiledLinear
from rudalle_lib.models.layers.fused_layer_norm import FusedLayerNorm
from rudalle_lib.models.layers.onednn_linear import OnednnLinear
from rudalle_lib.models.sparse_attention import SparseAttention, TokenGrid, layer_kind

BOS = 2
"""Id of the token that v2 puts before the text."""

IMAGE_LOSS_WEIGHT = 7
"""Weight of the image loss relative to the text loss."""

STORED_MASKS = ("transformer.row_mask", "transformer.col_mask", "transformer.conv_mask")
"""Keys of published checkpoints that are not parameters."""

LAYER_NAME = re.compile(r"transformer\.layers\.(\d+)\.")
"""Start of the name of a tensor in a layer, with the layer's index."""

Attend = Callable[[Tensor], Tensor]
"""Attention of one layer: concatenated queries, keys and values [..., 3 C] -> contexts [..., C]."""


@dataclass(frozen=True)
class DalleConfig:
    """Architecture of a decoder.

    Args:
        num_layers: transformer layers; `layer_kind` gives the attention pattern of each.
        hidden_size: width, a multiple of `num_heads`.
        num_heads: attention heads.
        text_vocab_size: BPE pieces plus `text_length` pad ids, one per position.
        text_length: text tokens, including pads.
        image_vocab_size: codes of the VQ-GAN.
        image_height: rows of image tokens.
        image_width: columns of image tokens.
        version: layout of the sequence, "v2" or "v3"; see the module.
        sandwich_norm: whether to normalise the output of each branch too.

    Raises:
        ValueError: the sizes do not fit together, or the version is unknown.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    text_vocab_size: int
    text_length: int
    image_vocab_size: int
    image_height: int
    image_width: int
    version: str = "v3"
    sandwich_norm: bool = True

    def __post_init__(self) -> None:
        """Check that the sizes fit together."""
        for name, value in vars(self).items():
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ValueError(f"DalleConfig.{name}: expected at least 1, found {value}")
        if self.version not in ("v2", "v3"):
            raise ValueError(f"DalleConfig.version: expected 'v2' or 'v3', found {self.version!r}")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"DalleConfig.hidden_size: expected a multiple of num_heads ({self.num_heads}), "
                f"found {self.hidden_size}"
            )
        if self.text_vocab_size <= self.text_length:
            raise ValueError(
                f"DalleConfig.text_vocab_size: expected more than text_length "
                f"({self.text_length}), because it includes one pad id per position, "
                f"found {self.text_vocab_size}"
            )

    @property
    def image_length(self) -> int:
        """Tokens per image."""
        return self.image_height * self.image_width

    @property
    def grid(self) -> TokenGrid:
        """Layout of the sequence from the attention layers' point of view."""
        return TokenGrid(
            self.text_length, self.image_height, self.image_width, wrap=self.version == "v2"
        )


class DalleLoss(NamedTuple):
    """Scalars: `total` = (text + 7 * image) / 8, of cross-entropies in nats per token."""

    total: Tensor
    text: Tensor
    image: Tensor


class SelfAttention(nn.Module):
    """Multi-head attention; the caller's `attend` defines which positions see which."""

    def __init__(self, config: DalleConfig) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, attend: Attend) -> Tensor:
        """Mix positions. hidden [..., C] -> [..., C]."""
        output = self.dense(attend(self.query_key_value(hidden)))
        if output.dtype is torch.float16:  # the only dtype that overflows here
            output = output.clamp(-65504, 65504)
        return output


class FeedForward(nn.Module):
    """Two linear layers with GELU (tanh form) between them, at four times the width."""

    def __init__(self, config: DalleConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 4 * config.hidden_size)
        self.dense_4h_to_h = nn.Linear(4 * config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map each position. hidden [..., C] -> [..., C]."""
        if isinstance(self.dense_h_to_4h, OnednnLinear | CompiledLinear):
            wide = self.dense_h_to_4h.forward_gelu(hidden)  # [..., 4 C]
        else:
            wide = functional.gelu(self.dense_h_to_4h(hidden), approximate="tanh")
        return self.dense_4h_to_h(wide)


class DalleLayer(nn.Module):
    """Attention and feed-forward branches, each between two layer norms."""

    def __init__(self, config: DalleConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.input_layernorm = nn.LayerNorm(width)
        self.attention = SelfAttention(config)
        self.post_attention_layernorm = nn.LayerNorm(width)
        self.mlp = FeedForward(config)
        self.before_first_addition_layernorm: nn.Module = nn.Identity()
        self.before_second_addition_layernorm: nn.Module = nn.Identity()
        if config.sandwich_norm:
            self.before_first_addition_layernorm = nn.LayerNorm(width)
            self.before_second_addition_layernorm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor, attend: Attend) -> Tensor:
        """Apply the layer. hidden [..., C] -> [..., C]."""
        branch = self.attention(self.input_layernorm(hidden), attend)
        hidden = _add_norm(hidden, self.before_first_addition_layernorm, branch)
        branch = self.mlp(self.post_attention_layernorm(hidden))
        return _add_norm(hidden, self.before_second_addition_layernorm, branch)


def _add_norm(hidden: Tensor, norm: nn.Module, branch: Tensor) -> Tensor:
    """`hidden + norm(branch)`, in one pass if the norm is compiled."""
    if isinstance(norm, FusedLayerNorm):
        return norm(branch, hidden)
    return hidden + norm(branch)


class DalleTransformer(nn.Module):
    """All layers and the final norm."""

    def __init__(self, config: DalleConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DalleLayer(config) for _ in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size)
        self.gradient_checkpointing = False

    def forward(self, hidden: Tensor, attend: Callable[[int], Attend]) -> Tensor:
        """Run all layers, moving the hidden states along if they are on several devices.

        With `gradient_checkpointing` the backward pass computes each layer again from its input.

        Args:
            hidden: [..., C].
            attend: returns the attention of a layer by its index.

        Returns:
            [..., C], on the device of the final norm.
        """
        for index, layer in enumerate(self.layers):
            inputs = hidden.to(_device_of(layer)), attend(index)
            again = self.gradient_checkpointing and torch.is_grad_enabled()
            hidden = checkpoint(layer, *inputs, use_reentrant=False) if again else layer(*inputs)
        return self.final_layernorm(hidden.to(_device_of(self.final_layernorm)))


def device_of_tensor(name: str, num_layers: int, devices: Sequence[torch.device]) -> torch.device:
    """Choose the device of a tensor of a `Dalle` whose layers are spread over several devices.

    Each device gets consecutive layers. The first one also gets all tensors outside the layers, so
    it receives the tokens and returns the logits.

    Args:
        name: the tensor's name in the state dict.
        num_layers: number of layers of the network.
        devices: at least one, in the order of the layers.
    """
    layer = LAYER_NAME.match(name)
    return devices[int(layer[1]) * len(devices) // num_layers if layer else 0]


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


class Dalle(nn.Module):
    """The decoder of ruDALL-E.

    Args:
        config: the architecture.
        blockwise: compute row and column attention in blocks, which is fast; False uses dense
            masks, for comparison in tests.
    """

    def __init__(self, config: DalleConfig, blockwise: bool = True) -> None:
        super().__init__()
        self.config = config
        self.attention = SparseAttention(config.grid, blockwise)
        width = config.hidden_size
        self.text_embeddings = nn.Embedding(config.text_vocab_size, width)
        self.image_embeddings = nn.Embedding(config.image_vocab_size, width)
        self.text_pos_embeddings = nn.Embedding(
            config.text_length + 1, width
        )  # v3 does not use the last
        self.image_row_embeddings = nn.Embedding(config.image_height, width)
        self.image_col_embeddings = nn.Embedding(config.image_width, width)
        self.transformer = DalleTransformer(config)
        vocab_size = config.text_vocab_size + config.image_vocab_size
        self.to_logits = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocab_size))
        self.init_weights()

    @torch.no_grad()
    def init_weights(
        self,
        weight_std: float = 0.02,
        embedding_std: float = 0.02,
        position_std: float = 0.02,
        branch_gain: float = 1.0,
    ) -> None:
        """Initialise the weights from torch's global generator.

        Small networks learn better with embeddings of 0.5, positions of 0.3 and a branch gain of
        0.3: sandwich norms of gain 1 would drown embeddings of 0.02.

        Args:
            weight_std: standard deviation of linear weights; biases become 0.
            embedding_std: the same for token embeddings.
            position_std: the same for position embeddings.
            branch_gain: gain of the norm at the end of each branch; other norms get 1.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(std=weight_std)
                module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                is_token = name in ("text_embeddings", "image_embeddings")
                module.weight.normal_(std=embedding_std if is_token else position_std)
            elif isinstance(module, nn.LayerNorm):
                module.weight.fill_(branch_gain if "addition_layernorm" in name else 1.0)
                module.bias.zero_()

    def embed_text(self, text: Tensor) -> Tensor:
        """Embed text, int64 [B, T], 0 = pad -> [B, T, C], or [B, T + 1, C] with the BOS of v2."""
        text = self._pads_by_position(text)
        if self.config.version == "v2":
            text = functional.pad(text, (1, 0), value=BOS)
        positions = self.text_pos_embeddings.weight[: text.shape[1]]
        return self.text_embeddings(text) + positions

    def embed_image(self, image: Tensor, start: int = 0) -> Tensor:
        """Embed image tokens.

        Args:
            image: int64 [B, n].
            start: position of the first of them in the image, in reading order.

        Returns:
            [B, n, C].
        """
        positions = self.image_positions()[start : start + image.shape[1]]
        return self.image_embeddings(image) + positions

    def image_positions(self) -> Tensor:
        """Return the position embeddings of all image tokens in reading order, [H * W, C]."""
        rows, columns = self.image_row_embeddings.weight, self.image_col_embeddings.weight
        return (rows[:, None] + columns).flatten(0, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute the logits at every position, over the whole vocabulary.

        Args:
            tokens: int64 [B, T + n], text ids (0 = pad), then the first n image tokens.

        Returns:
            [B, S, text_vocab_size + image_vocab_size]. S is T + n in v3, and T + n + 1 but at most
            T + H * W in v2.
        """
        text, image = tokens.tensor_split((self.config.text_length,), dim=1)
        return self.to_logits(self._hidden(text, image))

    def loss(self, text: Tensor, image: Tensor) -> DalleLoss:
        """Compute the training loss.

        As in the original, pads are labels like any other, each with the id of its position. Unlike
        in the original v3 loss, the first image token counts as an image token.

        Args:
            text: int64 [B, T], 0 = pad.
            image: int64 [B, H * W].
        """
        length = self.config.text_length
        hidden = self._hidden(text, image)  # [B, T + H * W, C]
        labels = self._pads_by_position(text)
        if self.config.version == "v2":  # the BOS predicts the first text token
            text_hidden, image_hidden = hidden[:, :length], hidden[:, length:]
        else:
            text_hidden, image_hidden = hidden[:, : length - 1], hidden[:, length - 1 : -1]
            labels = labels[:, 1:]
        text_loss = _cross_entropy(self.text_logits(text_hidden), labels)
        image_loss = _cross_entropy(self.image_logits(image_hidden), image)
        total = (text_loss + IMAGE_LOSS_WEIGHT * image_loss) / (1 + IMAGE_LOSS_WEIGHT)
        return DalleLoss(total, text_loss, image_loss)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Compute logits of the next text token. hidden [..., C] -> [..., text_vocab_size]."""
        return self._head(hidden, slice(0, self.config.text_vocab_size))

    def image_logits(self, hidden: Tensor) -> Tensor:
        """Compute logits of the next image token. hidden [..., C] -> [..., image_vocab_size]."""
        return self._head(hidden, slice(self.config.text_vocab_size, None))

    def _head(self, hidden: Tensor, vocabulary: slice) -> Tensor:
        norm, linear = self.to_logits
        assert isinstance(linear, nn.Linear)
        return functional.linear(norm(hidden), linear.weight[vocabulary], linear.bias[vocabulary])

    def _hidden(self, text: Tensor, image: Tensor) -> Tensor:
        embedded = torch.cat((self.embed_text(text), self.embed_image(image)), dim=1)
        embedded = embedded[:, : self.config.grid.length]  # v2 drops the last image token
        return self.transformer(embedded, self._attention_of_layer)

    def _attention_of_layer(self, index: int) -> Attend:
        kind = layer_kind(index, self.config.num_layers)

        def attend(projected: Tensor) -> Tensor:
            query, key, value = split_heads(projected, self.config.num_heads)
            return merge_heads(self.attention(kind, query, key, value))

        return attend

    def _pads_by_position(self, text: Tensor) -> Tensor:
        """Replace the pad at each position by that position's id, at the end of the vocabulary."""
        length, vocab_size = self.config.text_length, self.config.text_vocab_size
        pads = torch.arange(vocab_size - length, vocab_size, device=text.device)
        return torch.where(text == 0, pads, text)


def split_heads(projected: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split a projection into query, key and value. [B, S, 3 C] -> 3 times [B, heads, S, D]."""
    query, key, value = rearrange(projected, "b s (three n d) -> three b n s d", three=3, n=heads)
    return query, key, value


def merge_heads(context: Tensor) -> Tensor:
    """Concatenate the heads. [B, heads, S, D] -> [B, S, C]."""
    return rearrange(context, "b n s d -> b s (n d)")


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in float32. logits [B, S, V], labels [B, S] -> scalar."""
    return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
