"""Attention from one new cell of each image to its text and to the cells that it sees, in Triton.

One program computes one head of up to `MAX_IMAGES` images of one prompt. It stores the keys and
values of the new cell, multiplies the queries of all its images by one copy of the text, and then
reads the cells that each image sees from that image's own cache. The softmax is computed online, so
nothing but keys and values is read and nothing but contexts is written.

The position is read from the device, so one CUDA graph serves all steps. A row of the result does
not depend on which images share its program.

If the next product rounds its inputs to 8 bits, it needs the largest value of each row. A program
has one head of it, and the largest value of all heads does not depend on their order.

Source: online softmax after Milakov and Gimelshein, arXiv:1805.02867, as in FlashAttention.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from rudalle_lib.models.gpu.image_groups import MAX_IMAGES, ImageGroups
from rudalle_lib.models.gpu.slot_tables import SlotTables
from rudalle_lib.models.layers.triton_int8 import sizes_of
from rudalle_lib.models.layers.triton_support import BoundedRows

CELL_BLOCK = 2
"""Cells of each image that are read at once. With 2, a thread needs 80 registers in bfloat16 and
heads of 128, so three programs share a multiprocessor; with 4, it needs 216, and only one fits."""

TEXT_BYTES = 64
"""Text positions that are read at once, times the bytes per number; more would spill registers."""

WARPS = 8
"""Warps of a program; with four and `CELL_BLOCK` 4, its registers spill."""


class LayerCache(NamedTuple):
    """Keys and values of one layer, contiguous.

    Attributes:
        key: [R, heads, slots, D], of the cells of each row.
        value: the same.
        text_key: [P, heads, T, D], of each prompt.
        text_value: the same.
    """

    key: Tensor
    value: Tensor
    text_key: Tensor
    text_value: Tensor


def attend(
    contexts: Tensor | BoundedRows,
    projected: Tensor,
    cache: LayerCache,
    cell: Tensor,
    tables: SlotTables,
    groups: ImageGroups,
) -> None:
    """Store a cell of each row and attend from it.

    Args:
        contexts: [R, C], where C is heads * D; rows of no group are left as they are. The largest
            values are raised to those of the contexts, so they must be 0 before.
        projected: [R, 3 C], query, key and value of the cell, concatenated.
        cache: of the layer.
        cell: int32 [1], the number of the cell.
        tables: which slots of the layer hold what each cell sees.
        groups: which rows have which prompt.
    """
    _, heads, slots, width = cache.key.shape
    text = cache.text_key.shape[2]
    values, largest = contexts if isinstance(contexts, BoundedRows) else (contexts, None)
    cell_attention[(len(groups.prompt), heads)](
        projected, *cache, values, largest,
        cell, tables.slot, tables.seen, tables.seen_count, groups.prompt, groups.rows,
        1 / math.sqrt(width),
        HEADS=heads, D=width, D_BLOCK=max(16, triton.next_power_of_2(width)),
        T=text, T_BLOCK=text_block(text, cache.key.element_size()),
        SLOTS=slots, MAX_SEEN=tables.seen.shape[1], CELL_BLOCK=CELL_BLOCK, IMAGES=MAX_IMAGES,
        num_warps=WARPS, num_stages=2,
    )  # fmt: skip


def text_block(text: int, element_size: int) -> int:
    """Text positions that are read at once: a power of two, at least 16."""
    return min(max(16, triton.next_power_of_2(text)), TEXT_BYTES // element_size)


@triton.jit
def cell_attention(
    projected, key, value, text_key, text_value, contexts, largest,
    cell_at, slot_of, seen, seen_count, group_prompt, group_rows, scale,
    HEADS: tl.constexpr, D: tl.constexpr, D_BLOCK: tl.constexpr,
    T: tl.constexpr, T_BLOCK: tl.constexpr, SLOTS: tl.constexpr,
    MAX_SEEN: tl.constexpr, CELL_BLOCK: tl.constexpr, IMAGES: tl.constexpr,
):  # fmt: skip
    """The kernel of `attend`; grid [groups, heads]. `largest` is None, or that of each row."""
    group, head = tl.program_id(0), tl.program_id(1)
    rows = tl.load(group_rows + group * IMAGES + tl.arange(0, IMAGES))  # [M], -1 is nobody
    taken = rows >= 0
    if tl.max(rows, axis=0) < 0:  # an empty group
        return
    rows = tl.where(taken, rows, 0).to(tl.int64)
    d = tl.arange(0, D_BLOCK)
    inside = taken[:, None] & (d < D)[None, :]
    C: tl.constexpr = HEADS * D
    at = projected + rows[:, None] * (3 * C) + head * D + d[None, :]  # [M, D]
    query = tl.load(at, mask=inside, other=0.0)
    new_key = tl.load(at + C, mask=inside, other=0.0)
    new_value = tl.load(at + 2 * C, mask=inside, other=0.0)

    cell = tl.load(cell_at)
    cache = (rows * HEADS + head) * SLOTS  # [M], first slot of each image
    slot = (cache + tl.load(slot_of + cell))[:, None] * D + d[None, :]
    tl.store(key + slot, new_key, mask=inside)
    tl.store(value + slot, new_value, mask=inside)

    # The new cell itself, from registers.
    scaled = query.to(tl.float32) * scale
    best = tl.sum(scaled * new_key.to(tl.float32), axis=1)  # [M], largest score so far
    total = tl.full([IMAGES], 1.0, tl.float32)  # [M], sum of exp(score - best)
    context = new_value.to(tl.float32)  # [M, D], weighted sum of values

    # The text, one copy for all images.
    text = (tl.load(group_prompt + group).to(tl.int64) * HEADS + head) * T * D
    for start in range(0, T, T_BLOCK):
        t = start + tl.arange(0, T_BLOCK)
        position = text + t[:, None] * D + d[None, :]  # [T, D]
        readable = (t < T)[:, None] & (d < D)[None, :]
        keys = tl.load(text_key + position, mask=readable, other=0.0)
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale  # [M, T]
        scores = tl.where((t < T)[None, :], scores, float("-inf"))
        larger = tl.maximum(best, tl.max(scores, axis=1))
        weights = tl.exp(scores - larger[:, None])
        keep = tl.exp(best - larger)
        values = tl.load(text_value + position, mask=readable, other=0.0)
        total = total * keep + tl.sum(weights, axis=1)
        context = context * keep[:, None]
        context += tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        best = larger

    # The cells seen, of each image its own.
    count = tl.load(seen_count + cell)
    for start in range(0, count, CELL_BLOCK):
        number = start + tl.arange(0, CELL_BLOCK)
        visible = number < count
        slots = tl.load(seen + cell * MAX_SEEN + number, mask=visible, other=0)
        position = (cache[:, None] + slots[None, :])[:, :, None] * D + d[None, None, :]  # [M, K, D]
        readable = inside[:, None, :] & visible[None, :, None]
        keys = tl.load(key + position, mask=readable, other=0.0).to(tl.float32)
        scores = tl.sum(scaled[:, None, :] * keys, axis=2)  # [M, K]
        scores = tl.where(visible[None, :], scores, float("-inf"))
        larger = tl.maximum(best, tl.max(scores, axis=1))
        weights = tl.exp(scores - larger[:, None])
        keep = tl.exp(best - larger)
        values = tl.load(value + position, mask=readable, other=0.0).to(tl.float32)
        total = total * keep + tl.sum(weights, axis=1)
        context = context * keep[:, None] + tl.sum(weights[:, :, None] * values, axis=1)
        best = larger

    output = (context / total[:, None]).to(contexts.dtype.element_ty)
    tl.store(contexts + rows[:, None] * C + head * D + d[None, :], output, mask=inside)
    if largest is not None:
        sizes = tl.where(inside, sizes_of(output.to(tl.float32)), 0.0)
        tl.atomic_max(largest + rows, tl.max(sizes, axis=1), mask=taken, sem="relaxed")
