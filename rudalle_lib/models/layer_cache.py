"""Keys and values of one layer, and attention over them, by torch's operators on any device."""

import math

import torch
from torch import Tensor

from rudalle_lib.models.cell_slots import SlotPlan
from rudalle_lib.models.text_sharing import TextSharing


class LayerCache:
    """Keys and values of one layer.

    All products of a step are batched ones over contiguous heads: slices of the cache, and texts
    that are laid out once, here.

    Args:
        plan: where cells are kept.
        text_key: [P, heads, T, D], one a prompt.
        text_value: the same.
        sharing: which image reads which text.
    """

    def __init__(
        self, plan: SlotPlan, text_key: Tensor, text_value: Tensor, sharing: TextSharing
    ) -> None:
        _, self.heads, self.text_length, self.width = text_key.shape
        self.plan = plan
        self.sharing = sharing
        self.text_key = text_key.transpose(2, 3).contiguous()  # [P, heads, D, T]
        self.text_value = text_value.contiguous()  # [P, heads, T, D]
        shape = (sharing.images * self.heads, plan.size, self.width)  # [B * heads, slots, D]
        self.key, self.value = text_key.new_empty(shape), text_key.new_empty(shape)
        most = max((len(slots) for slots in plan.visible if isinstance(slots, Tensor)), default=0)
        self._gathered = text_key.new_empty(2, shape[0] * most * self.width)

    def attend(self, cell: int, projected: Tensor) -> Tensor:
        """Store a cell and attend from it to the text and to the cells it sees.

        Args:
            cell: its number; all cells before it have been stored.
            projected: [B, 3 C], query, key and value of the cell side by side.

        Returns:
            [B, C].
        """
        images, slot, visible = len(projected), self.plan.slot[cell], self.plan.visible[cell]
        parts = projected.view(images, 3, self.heads, self.width)
        query, key, value = parts.unbind(1)  # [B, heads, D]
        self.key[:, slot].view_as(key).copy_(key)
        self.value[:, slot].view_as(value).copy_(value)
        query = query / math.sqrt(self.width)
        of_text = self.sharing.product(query, self.text_key)  # [B, heads, T]
        keys, values = self._seen(visible)  # [B * heads, K, D]
        of_cells = torch.bmm(query.reshape(-1, 1, self.width), keys.transpose(1, 2))
        of_cells = of_cells.view(images, self.heads, -1)
        weights = torch.cat((of_text, of_cells), dim=-1).softmax(dim=-1)  # [B, heads, T + K]
        of_text, of_cells = weights.tensor_split((self.text_length,), dim=-1)
        from_text = self.sharing.product(of_text, self.text_value)  # [B, heads, D]
        from_cells = torch.bmm(of_cells.flatten(0, 1).unsqueeze(1), values)  # [B * heads, 1, D]
        return (from_text + from_cells.view_as(from_text)).flatten(1)

    def _seen(self, visible: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of some slots, [B * heads, K, D]. Those of a list are copies, always in
        the same memory, for that of so many would come anew from the system at every step.
        """
        if isinstance(visible, slice):
            return self.key[:, visible], self.value[:, visible]
        shape = (len(self.key), len(visible), self.width)
        room = self._gathered[:, : math.prod(shape)]
        keys = torch.index_select(self.key, 1, visible, out=room[0].view(shape))
        return keys, torch.index_select(self.value, 1, visible, out=room[1].view(shape))
