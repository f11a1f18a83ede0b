"""What `CachedDecoder` expects of the cache of one layer, whichever way it is computed."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from rudalle_lib.models.decoding.cache_slots import SlotPlan


class LayerCache(Protocol):
    """Keys and values of one layer for a batch of B images, and attention over them.

    Implemented by `TorchLayerCache` on any device and by `NativeLayerCache` on a CPU. Both are
    built from a slot plan, the keys and values of P prompts, [P, heads, T, D] each, and a table of
    which image has which prompt.
    """

    plan: SlotPlan
    """Where cells are stored."""

    heads: int
    """Attention heads."""

    text_length: int
    """Text positions T."""

    width: int
    """Width D of a head."""

    key: Tensor
    """Keys of the stored cells, for all images; the layout depends on the implementation."""

    value: Tensor
    """Values of the stored cells, in the layout of `key`."""

    def attend(self, cell: int, projected: Tensor) -> Tensor:
        """Store a cell, then attend from it to the text and to the cells visible to it.

        Args:
            cell: its number, 0 ... H * W - 1; all earlier cells must have been stored.
            projected: [B, 3 C], query, key and value of the cell, concatenated.

        Returns:
            [B, C], where C is heads * D.
        """
