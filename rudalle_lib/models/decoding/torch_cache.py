"""The cache of one layer with torch operators, on any device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rudalle_lib.models.decoding.cache_slots import SlotPlan
from rudalle_lib.models.decoding.prompt_sharing import PromptSharing


class TorchLayerCache:
    """A `LayerCache` of torch operators.

    All products of a step are batched products over contiguous heads: of slices of the cache, and
    of texts that are laid out once.

    Args:
        plan: where cells are stored.
        text_key: [P, heads, T, D], one per prompt.
        text_value: the same.
        sharing: which image has which prompt.
    """

    def __init__(
        self, plan: SlotPlan, text_key: Tensor, text_value: Tensor, sharing: PromptSharing
    ) -> None:
        _, self.heads, self.text_length, self.width = text_key.shape
        self.plan = plan
        self.sharing = sharing
        self.text_key = text_key.transpose(2, 3).contiguous()  # [P, heads, D, T]
        self.text_value = text_value.contiguous()  # [P, heads, T, D]
        shape = (sharing.images * self.heads, plan.size, self.width)  # [B * heads, slots, D]
        self.key, self.value = text_key.new_empty(shape), text_key.new_empty(shape)
        lengths = (len(slots) for slots in plan.visible if isinstance(slots, Tensor))
        self._gathered = text_key.new_empty(2, shape[0] * max(lengths, default=0) * self.width)

    def attend(self, cell: int, projected: Tensor) -> Tensor:
        """Store a cell and attend from it; see `LayerCache`. [B, 3 C] -> [B, C]."""
        images, slot, visible = len(projected), self.plan.slot[cell], self.plan.visible[cell]
        parts = projected.view(images, 3, self.heads, self.width)
        query, key, value = parts.unbind(1)  # [B, heads, D]
        self.key[:, slot].view_as(key).copy_(key)
        self.value[:, slot].view_as(value).copy_(value)
        query = query / math.sqrt(self.width)
        text_scores = self.sharing.product(query, self.text_key)  # [B, heads, T]
        keys, values = self._visible_cells(visible)  # [B * heads, K, D]
        cell_scores = torch.bmm(query.reshape(-1, 1, self.width), keys.transpose(1, 2))
        cell_scores = cell_scores.view(images, self.heads, -1)
        weights = torch.cat((text_scores, cell_scores), dim=-1).softmax(dim=-1)  # [B, heads, T + K]
        text_weights, cell_weights = weights.tensor_split((self.text_length,), dim=-1)
        from_text = self.sharing.product(text_weights, self.text_value)  # [B, heads, D]
        from_cells = torch.bmm(cell_weights.flatten(0, 1).unsqueeze(1), values)  # [B * heads, 1, D]
        return (from_text + from_cells.view_as(from_text)).flatten(1)

    def _visible_cells(self, visible: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of some slots, [B * heads, K, D].

        Slots of a list are gathered into the same memory at every step; new tensors of this size
        would be allocated from the operating system each time.
        """
        if isinstance(visible, slice):
            return self.key[:, visible], self.value[:, visible]
        shape = (len(self.key), len(visible), self.width)
        workspace = self._gathered[:, : math.prod(shape)]
        keys = torch.index_select(self.key, 1, visible, out=workspace[0].view(shape))
        return keys, torch.index_select(self.value, 1, visible, out=workspace[1].view(shape))
