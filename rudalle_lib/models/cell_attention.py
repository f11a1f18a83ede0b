"""Attention of a decoding step on a CPU: compiled, in one pass over the cache of a layer.

By torch's operators that is a dozen of them, each of which reads and writes memory again: copies
into the layout of a product, two products each for texts and cells, softmax between. Here one task
does it all for up to 8 images of a text in one head, in registers; see `native/cell_attention.h`.
In bfloat16 AMX's tiles multiply, where there are any. Where there was no compiler, or sizes do not
fit, layers take `layer_cache` instead.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cached_property

import torch
from einops import rearrange
from torch import Tensor

from rudalle_lib.models import native
from rudalle_lib.models.cell_slots import SlotPlan
from rudalle_lib.models.native import BLOCK

# As in native/cell_attention.h.
TOGETHER = 8
MOST_WIDTH = 256
MOST_SEEN = 512


class _Group(ctypes.Structure):
    _fields_ = (
        ("text", ctypes.c_int32),
        ("before", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("images", ctypes.c_int32 * TOGETHER),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        *native.numbers("heads", "width", "text_length", "blocks", "slots"),
        *native.numbers("block", "slot", "seen", "groups"),
        *native.addresses("visible", "group", "projected", "keys", "values"),
        *native.addresses("text_keys", "text_values", "contexts"),
    )


def can_attend(plan: SlotPlan, text_key: Tensor) -> bool:
    """Whether a layer with such a plan and keys [P, heads, T, D] can do without torch."""
    *_, length, width = text_key.shape
    return (
        native.can_compute(text_key)
        and width % BLOCK == length % BLOCK == 0
        and width <= MOST_WIDTH
        and length + plan.most_visible <= MOST_SEEN
    )


class ImageGroups:
    """The images of a batch in groups of at most `TOGETHER` that read the same text."""

    def __init__(self, prompt_of: Tensor) -> None:
        """Take int64 [B], the text of each image."""
        images: dict[int, list[int]] = {}
        for image, text in enumerate(prompt_of.tolist()):
            images.setdefault(text, []).append(image)
        groups, before = list[_Group](), 0
        for text, all_ in images.items():
            for some in _chunks(all_, TOGETHER):
                groups.append(_Group(text, before, len(some), tuple(some)))
                before += len(some)
        self.images = len(prompt_of)
        self.table = (_Group * len(groups))(*groups)


def _chunks(items: Sequence[int], size: int) -> list[Sequence[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def halves_apart(matrix: Tensor) -> Tensor:
    """[..., columns] with the even ones of `BLOCK` columns before the odd ones."""
    pairs = "... (block pair two) -> ... (block two pair)"
    return rearrange(matrix, pairs, two=2, pair=BLOCK // 2)


def in_blocks(matrix: Tensor) -> Tensor:
    """[..., rows, columns] as [..., columns / BLOCK, rows, BLOCK], to be read from end to end.

    The even ones of `BLOCK` rows of bfloat16 come before the odd ones, as the numbers that they are
    multiplied with do there.
    """
    if matrix.dtype is torch.bfloat16:
        matrix = halves_apart(matrix.mT).mT
    return rearrange(matrix, "... r (block c) -> ... block r c", c=BLOCK).contiguous()


class CompiledLayerCache:
    """As `layer_cache.LayerCache`, for what `can_attend`.

    Args:
        plan: where cells are kept.
        text_key: [P, heads, T, D], one a prompt.
        text_value: the same.
        groups: which images read which text.
    """

    def __init__(
        self, plan: SlotPlan, text_key: Tensor, text_value: Tensor, groups: ImageGroups
    ) -> None:
        _, self.heads, self.text_length, self.width = text_key.shape
        self.plan = plan
        self.groups = groups
        if text_key.dtype is torch.bfloat16 and native.can_multiply_tiles():
            self._function = "attend_from_cell_by_tiles"
            self.text_key = native.in_tiles(text_key).contiguous()
            self.text_value = native.in_tiles(halves_apart(text_value).mT).contiguous()
        else:
            self._function = "attend_from_cell"
            self.text_key = in_blocks(text_key.transpose(2, 3))
            self.text_value = in_blocks(text_value)
        numbers = groups.images * plan.size * self.heads * self.width
        self.key, self.value = text_key.new_empty(numbers), text_key.new_empty(numbers)

    def attend(self, cell: int, projected: Tensor) -> Tensor:
        """Store a cell and attend from it to the text and to the cells it sees.

        Args:
            cell: its number; all cells before it have been stored.
            projected: [B, 3 C], query, key and value of the cell side by side.

        Returns:
            [B, C].
        """
        contexts = projected.new_empty(len(projected), self.heads * self.width)
        self.go_to(cell)
        self.into(contexts, projected.contiguous()).run()
        return contexts

    def go_to(self, cell: int) -> None:
        """Make this the cell from which the operation of `into` attends."""
        step, visible = self._step, self.plan.tables[cell]
        step.block, step.slot = divmod(self.plan.slot[cell], self.plan.block)
        step.seen, step.visible = len(visible), visible.data_ptr()

    def into(self, contexts: Tensor, projected: Tensor) -> native.Operation:
        """What `attend` does, of contiguous tensors; one at a time."""
        hidden = self.heads * self.width
        if projected.shape != (self.groups.images, 3 * hidden) or projected.dtype != self.key.dtype:
            raise ValueError(
                f"projected: expected {[self.groups.images, 3 * hidden]} in {self.key.dtype}, "
                f"found {list(projected.shape)} in {projected.dtype}"
            )
        step = self._step
        step.projected, step.contexts = projected.data_ptr(), contexts.data_ptr()
        read = 2 * len(projected) * hidden * (self.text_length + self.plan.most_visible)
        return native.operation(self._function, self.key.dtype, step, read, projected, contexts)

    @cached_property
    def _step(self) -> _Step:
        """What is the same at every step."""
        return _Step(
            heads=self.heads,
            width=self.width,
            text_length=self.text_length,
            blocks=self.plan.size // self.plan.block,
            slots=self.plan.block,
            keys=self.key.data_ptr(),
            values=self.value.data_ptr(),
            groups=len(self.groups.table),
            group=ctypes.addressof(self.groups.table),
            text_keys=self.text_key.data_ptr(),
            text_values=self.text_value.data_ptr(),
        )
