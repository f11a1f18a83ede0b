"""A decoder with a key-value cache that keeps only what the sparse layers can still see.

Keys and values of texts are computed once per prompt and shared by its images. Of an image, only
cells that are visible to some later cell are kept (`cache_slots`). On a CPU, a step attends in one
compiled pass over a layer's cache (`native_cache`); on other devices with torch (`torch_cache`).
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn

from rudalle_lib.models.dalle import Attend, Dalle, merge_heads, split_heads
from rudalle_lib.models.decoding.cache_slots import plan_slots
from rudalle_lib.models.decoding.fused_step import FusedStep, are_native, can_fuse
from rudalle_lib.models.decoding.layer_cache import LayerCache
from rudalle_lib.models.decoding.native_cache import ImageGroups, NativeLayerCache, can_attend
from rudalle_lib.models.decoding.prompt_sharing import GuidedReplicas, PromptSharing, Replicas
from rudalle_lib.models.decoding.torch_cache import TorchLayerCache
from rudalle_lib.models.layers.onednn_linear import fastest_linear
from rudalle_lib.models.sparse_attention import LayerKind, attend, layer_kind


class CachedDecoder:
    """Computes the logits of a batch's image tokens, one token per image and step.

    Call `prefill` once, then `decode_one_token` with each drawn token except the last.

    Args:
        model: the network, on its device and in its dtype.
        text: int64 [P, text_length], text ids of the prompts, 0 = pad.
        prompt_of: int64 [B], the prompt of each image, 0 ... P - 1.
        unguided: the number of images at the end of the batch that form the unconditional branch of
            guidance; all have the last prompt. Affects only how they are laid out.
    """

    def __init__(self, model: Dalle, text: Tensor, prompt_of: Tensor, unguided: int = 0) -> None:
        config = model.config
        self.model = model
        self.prompt_of = prompt_of
        self._unguided = unguided
        self._kinds = [layer_kind(index, config.num_layers) for index in range(config.num_layers)]
        self._sharing: dict[torch.device, PromptSharing] = {}  # layers may be on several devices
        self._text = model.embed_text(text)  # [P, T or T + 1, C]
        self._positions = model.image_positions()  # [H * W, C]
        length = config.text_length
        future = torch.ones(length, length, dtype=torch.bool, device=text.device).triu(1)
        self._causal = self._text.new_zeros(length, length).masked_fill(future, -torch.inf)
        self._image_head = self._fast_image_head()
        self._layers: list[LayerCache] = []
        self._cells = 0  # stored so far
        self._tokens = 0  # image tokens read so far

    def prefill(self) -> Tensor:
        """Read the texts.

        Returns:
            The logits of the first image token, [B, image_vocab_size].
        """
        shared = self.model.config.text_length  # in v2 the last of the T + 1 positions is a cell
        hidden = self.model.transformer(self._text[:, :shared], self._store_text)  # [P, T, C]
        if self._text.shape[1] > shared:
            return self._append(self._text[self.prompt_of, shared])
        return self._logits(hidden[:, -1])[self.prompt_of]

    def decode_one_token(self, token: Tensor) -> Tensor:
        """Read one more image token per image.

        Args:
            token: int64 [B], the token drawn last.

        Returns:
            The logits of the next token, [B, image_vocab_size].
        """
        embedded = self.model.image_embeddings(token) + self._positions[self._tokens]
        self._tokens += 1
        return self._append(embedded)

    def _append(self, embedded: Tensor) -> Tensor:
        """Append a cell. embedded [B, C] -> [B, image_vocab_size]."""
        if self._fused_step:
            hidden = self._fused_step(embedded, self._cells)
        else:
            hidden = self.model.transformer(embedded, self._attend_from_cell)
        self._cells += 1
        return self._logits(hidden)

    def _logits(self, hidden: Tensor) -> Tensor:
        """[B, C] -> [B, image_vocab_size]."""
        if self._image_head is None:
            return self.model.image_logits(hidden)
        return self._image_head(self.model.to_logits[0](hidden))

    def _fast_image_head(self) -> nn.Module | None:
        """The part of the head that predicts image tokens, or None if a copy is not faster."""
        head = self.model.to_logits[1]
        assert isinstance(head, nn.Linear)
        first = self.model.config.text_vocab_size
        return fastest_linear(head.weight[first:], head.bias[first:])

    @cached_property
    def _fused_step(self) -> FusedStep | None:
        """All layers in one call, if they allow it."""
        transformer, caches = self.model.transformer, self._layers
        if can_fuse(transformer) and are_native(caches):
            return FusedStep(transformer, caches, len(self.prompt_of))
        return None

    def _store_text(self, index: int) -> Attend:
        kind = self._kinds[index]

        def attend_and_store(projected: Tensor) -> Tensor:
            query, key, value = split_heads(projected, self.model.config.num_heads)
            self._layers.append(self._new_layer(kind, key, value))
            return merge_heads(attend(query, key, value, self._causal.to(key.device)))

        return attend_and_store

    def _new_layer(self, kind: LayerKind, key: Tensor, value: Tensor) -> LayerCache:
        plan = plan_slots(kind, self.model.config.grid, key.device)
        if can_attend(plan, key):
            return NativeLayerCache(plan, key, value, self._groups)
        return TorchLayerCache(plan, key, value, self._sharing_on(key.device))

    @cached_property
    def _groups(self) -> ImageGroups:
        return ImageGroups(self.prompt_of)

    def _sharing_on(self, device: torch.device) -> PromptSharing:
        if device not in self._sharing:
            self._sharing[device] = self._share_prompts().to(device)
        return self._sharing[device]

    def _share_prompts(self) -> PromptSharing:
        if self._unguided:
            return GuidedReplicas(self.prompt_of, len(self._text), self._unguided)
        return Replicas(self.prompt_of, len(self._text))

    def _attend_from_cell(self, index: int) -> Attend:
        layer, cell = self._layers[index], self._cells
        return lambda projected: layer.attend(cell, projected)
