"""Where each cell is stored and which slots it sees, as tables on the device of a kernel."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from rudalle_lib.models.decoding.cache_slots import plan_slots
from rudalle_lib.models.sparse_attention import LayerKind, TokenGrid

CPU = torch.device("cpu")


class SlotTables(NamedTuple):
    """The slot plan of a kind of layers, on the device of the layers.

    Attributes:
        size: slots of a row.
        slot: int32 [cells], the slot of each cell.
        seen: int32 [cells, K], the slots that each cell sees, without its own.
        seen_count: int32 [cells], how many those are; the rest of `seen` is 0.
    """

    size: int
    slot: Tensor
    seen: Tensor
    seen_count: Tensor


@lru_cache(maxsize=32)
def slot_tables(kind: LayerKind, grid: TokenGrid, device: torch.device) -> SlotTables:
    """The tables of a kind of layers; see `decoding.cache_slots`."""
    plan = plan_slots(kind, grid, CPU)
    slot = torch.tensor(plan.slot, dtype=torch.int32)
    slots = torch.arange(plan.size, dtype=torch.int32)
    visible = [slots[seen] for seen in plan.visible]
    others = [seen[seen != own] for seen, own in zip(visible, slot, strict=True)]
    count = torch.tensor([len(seen) for seen in others], dtype=torch.int32)
    table = torch.zeros(grid.cells, max(int(count.max()), 1), dtype=torch.int32)
    for row, seen in zip(table, others, strict=True):
        row[: len(seen)] = seen
    return SlotTables(plan.size, slot.to(device), table.to(device), count.to(device))
