"""The cache of one layer with compiled attention, on a CPU.

In torch, attention of one step takes a dozen operators, each of which reads and writes memory:
copies into the layouts of the products, two products each for texts and cells, and a softmax. The
kernel does all of it in one pass over the cache, with one task per head and group of up to 8 images
of the same prompt. In bfloat16 it uses AMX if the CPU has it. If `can_attend` is false, use
`TorchLayerCache` instead. See `kernels/csrc/cached_attention.h`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cached_property

import torch
from einops import rearrange
from torch import Tensor

from rudalle_lib import kernels
from rudalle_lib.kernels.abi import (
    BLOCK,
    MAX_CONTEXT,
    MAX_GROUP,
    MAX_HEAD_WIDTH,
    AttentionArgs,
    ImageGroup,
)
from rudalle_lib.models.decoding.cache_slots import SlotPlan


def can_attend(plan: SlotPlan, text_key: Tensor) -> bool:
    """Whether the kernel can compute a layer with this plan and text keys [P, heads, T, D]."""
    *_, length, width = text_key.shape
    return (
        kernels.supports(text_key)
        and width % BLOCK == length % BLOCK == 0
        and width <= MAX_HEAD_WIDTH
        and length + plan.max_visible <= MAX_CONTEXT
    )


class ImageGroups:
    """The images of a batch, in groups of at most `MAX_GROUP` with the same prompt.

    Args:
        prompt_of: int64 [B], the prompt of each image.
    """

    def __init__(self, prompt_of: Tensor) -> None:
        images_of: dict[int, list[int]] = {}
        for image, prompt in enumerate(prompt_of.tolist()):
            images_of.setdefault(prompt, []).append(image)
        groups, before = list[ImageGroup](), 0
        for prompt, images in images_of.items():
            for chunk in _chunks(images, MAX_GROUP):
                groups.append(ImageGroup(prompt, before, len(chunk), tuple(chunk)))
                before += len(chunk)
        self.images = len(prompt_of)
        self.table = (ImageGroup * len(groups))(*groups)


def _chunks(items: Sequence[int], size: int) -> list[Sequence[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def deinterleave(matrix: Tensor) -> Tensor:
    """Reorder each `BLOCK` columns of [..., columns]: first the even ones, then the odd ones."""
    pairs = "... (block pair two) -> ... (block two pair)"
    return rearrange(matrix, pairs, two=2, pair=BLOCK // 2)


def to_blocks(matrix: Tensor) -> Tensor:
    """Lay out matrices in the order in which the kernel reads them.

    In bfloat16, each `BLOCK` rows are deinterleaved, like the vectors that they are multiplied by.

    Args:
        matrix: [..., rows, columns].

    Returns:
        [..., columns / BLOCK, rows, BLOCK], contiguous.
    """
    if matrix.dtype is torch.bfloat16:
        matrix = deinterleave(matrix.mT).mT
    return rearrange(matrix, "... r (block c) -> ... block r c", c=BLOCK).contiguous()


class NativeLayerCache:
    """A `LayerCache` with compiled attention; requires `can_attend`.

    Args:
        plan: where cells are stored.
        text_key: [P, heads, T, D], one per prompt.
        text_value: the same.
        groups: which image has which prompt.
    """

    def __init__(
        self, plan: SlotPlan, text_key: Tensor, text_value: Tensor, groups: ImageGroups
    ) -> None:
        _, self.heads, self.text_length, self.width = text_key.shape
        self.plan = plan
        self.groups = groups
        if text_key.dtype is torch.bfloat16 and kernels.has_amx():
            self._kernel = "amx_attention"
            self.text_key = kernels.to_tiles(text_key).contiguous()
            self.text_value = kernels.to_tiles(deinterleave(text_value).mT).contiguous()
        else:
            self._kernel = "cached_attention"
            self.text_key = to_blocks(text_key.transpose(2, 3))
            self.text_value = to_blocks(text_value)
        size = groups.images * plan.size * self.heads * self.width
        self.key, self.value = text_key.new_empty(size), text_key.new_empty(size)

    def attend(self, cell: int, projected: Tensor) -> Tensor:
        """Store a cell and attend from it; see `LayerCache`. [B, 3 C] -> [B, C].

        Raises:
            ValueError: `projected` has another shape or dtype.
        """
        contexts = projected.new_empty(len(projected), self.heads * self.width)
        self.set_position(cell)
        self.bind(contexts, projected.contiguous()).run()
        return contexts

    def set_position(self, cell: int) -> None:
        """Choose the cell from which the operation of `bind` attends."""
        args, visible = self._args, self.plan.visible_in_block[cell]
        args.block, args.slot = divmod(self.plan.slot[cell], self.plan.block_size)
        args.num_visible, args.visible = len(visible), visible.data_ptr()

    def bind(self, contexts: Tensor, projected: Tensor) -> kernels.Operation:
        """Prepare `attend` on fixed contiguous tensors; only the latest operation is valid.

        Args:
            contexts: [B, C], is overwritten by each run.
            projected: [B, 3 C].

        Raises:
            ValueError: `projected` has another shape or dtype.
        """
        hidden = self.heads * self.width
        if projected.shape != (self.groups.images, 3 * hidden) or projected.dtype != self.key.dtype:
            raise ValueError(
                f"projected: expected {[self.groups.images, 3 * hidden]} in {self.key.dtype}, "
                f"found {list(projected.shape)} in {projected.dtype}"
            )
        args = self._args
        args.projected, args.contexts = projected.data_ptr(), contexts.data_ptr()
        elements = 2 * len(projected) * hidden * (self.text_length + self.plan.max_visible)
        return kernels.operation(self._kernel, self.key.dtype, args, elements, projected, contexts)

    @cached_property
    def _args(self) -> AttentionArgs:
        """The arguments, of which those that do not change are set."""
        return AttentionArgs(
            heads=self.heads,
            head_width=self.width,
            text_length=self.text_length,
            num_blocks=self.plan.size // self.plan.block_size,
            block_size=self.plan.block_size,
            keys=self.key.data_ptr(),
            values=self.value.data_ptr(),
            num_groups=len(self.groups.table),
            groups=ctypes.addressof(self.groups.table),
            text_keys=self.text_key.data_ptr(),
            text_values=self.text_value.data_ptr(),
        )
