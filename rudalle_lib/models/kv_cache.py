"""A key-value cache that keeps only what the sparse layers can still see.

Exact, not an approximation: see `sparse_attention` for what each kind of layer sees. Keys and
values of the text are computed once a prompt and shared by its images. For the image

- a row layer needs the last `width + 1` cells: a ring;
- a column layer needs all cells, stored by column so that a column is one slice;
- the convolution layer needs the last 6 rows of cells: a ring, read through a short list of
  places; where its pattern wraps around the edges (v2), also the first 5 rows.
"""

import copy
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from rudalle_lib.models.dalle import Attend, Dalle, merge_heads, split_heads
from rudalle_lib.models.packed_linear import PackedLinear, can_pack
from rudalle_lib.models.sparse_attention import (
    KERNEL_RADIUS,
    LayerKind,
    TokenGrid,
    attend,
    cell_mask,
    layer_kind,
)


@dataclass(frozen=True)
class SlotPlan:
    """Where a layer's cache keeps the cells.

    Args:
        size: slots a layer needs.
        slot: for each cell, the slot that its key and value are written to.
        visible: for each cell, the slots of the cells that it sees, itself included.
    """

    size: int
    slot: list[int]
    visible: list[slice] | list[Tensor]


@lru_cache(maxsize=32)
def plan_slots(kind: LayerKind, grid: TokenGrid, device: torch.device) -> SlotPlan:
    """Lay out the cache of a layer of this kind, with any index tables on `device`."""
    if kind is LayerKind.ROW:
        return _ring(grid)
    return _columns(grid) if kind is LayerKind.COLUMN else _window(grid, device)


def _ring(grid: TokenGrid) -> SlotPlan:
    size = min(grid.width + 1, grid.cells)
    slot = [cell % size for cell in range(grid.cells)]
    return SlotPlan(size, slot, [slice(0, min(cell + 1, size)) for cell in range(grid.cells)])


def _columns(grid: TokenGrid) -> SlotPlan:
    slot = [cell % grid.width * grid.height + cell // grid.width for cell in range(grid.cells)]
    top = [cell % grid.width * grid.height for cell in range(grid.cells)]
    visible = [slice(first, last + 1) for first, last in zip(top, slot, strict=True)]
    return SlotPlan(grid.cells, slot, visible)


def _window(grid: TokenGrid, device: torch.device) -> SlotPlan:
    kept = KERNEL_RADIUS * grid.width if grid.wrap else 0  # first rows, seen again at the end
    ring = (KERNEL_RADIUS + 1) * grid.width
    cells = torch.arange(grid.cells)
    slot = torch.where(cells < kept, cells, kept + (cells - kept) % ring)
    visible = [slot[seen].to(device) for seen in cell_mask(LayerKind.CONVOLUTION, grid)]
    return SlotPlan(int(slot.max()) + 1, slot.tolist(), visible)


class TextSharing(Protocol):
    """Which image of a batch reads which text."""

    images: int

    def product(self, images: Tensor, matrices: Tensor) -> Tensor:
        """[B, heads, X] times its text's [P, heads, X, Y] for each image: [B, heads, Y]."""

    def to(self, device: torch.device) -> Self:
        """The same with its tables on another device."""


class Replicas:
    """Which images of a batch share a prompt, as index tables.

    Images are laid out as [prompts, R], R being the largest number of images of one prompt, so
    that one matrix product per prompt serves all its images; spare places repeat the first image.
    Images that come in that order already, equally many of each prompt, need no tables.

    Args:
        prompt_of: int64 [B], the prompt of each image, 0 ... prompts - 1.
        prompts: number of prompts.
    """

    def __init__(self, prompt_of: Tensor, prompts: int) -> None:
        self.images = len(prompt_of)
        same = prompt_of[:, None] == prompt_of[None, :]  # [B, B]
        rank = same.tril(-1).sum(1)  # of each image among those of its prompt
        most = int(rank.max()) + 1
        everyone = torch.arange(len(prompt_of), device=prompt_of.device)
        self.place = prompt_of * most + rank  # [B], of each image in the layout
        image = torch.zeros(prompts * most, dtype=torch.int64, device=prompt_of.device)
        image[self.place] = everyone
        self.image = image.view(prompts, most)  # [P, R], the image at each place
        self._in_order = len(image) == len(everyone) and torch.equal(self.place, everyone)

    def product(self, images: Tensor, matrices: Tensor) -> Tensor:
        """[B, heads, X] times its prompt's [P, heads, X, Y] for each image: [B, heads, Y]."""
        return self.by_image(self.by_prompt(images) @ matrices)

    def to(self, device: torch.device) -> Self:
        """The same with its tables on another device."""
        moved = copy.copy(self)
        moved.place, moved.image = self.place.to(device), self.image.to(device)
        return moved

    def by_prompt(self, images: Tensor) -> Tensor:
        """[B, heads, D] -> [P, heads, R, D]."""
        if self._in_order:
            return images.unflatten(0, self.image.shape).transpose(1, 2)
        return images[self.image].transpose(1, 2)

    def by_image(self, prompts: Tensor) -> Tensor:
        """[P, heads, R, D] -> [B, heads, D]."""
        by_place = prompts.transpose(1, 2).flatten(0, 1)
        return by_place if self._in_order else by_place[self.place]


class GuidedReplicas:
    """Images of some prompts, followed by images that all read one more text, the last.

    In a common layout that text, with far more images than any other, would fill it with spares.

    Args:
        prompt_of: int64 [B], the text of each image; the last `unguided` have the last one.
        prompts: number of texts, the last one included.
        unguided: images of the last text, at least 1.
    """

    def __init__(self, prompt_of: Tensor, prompts: int, unguided: int) -> None:
        self.images = len(prompt_of)
        self._prompted = len(prompt_of) - unguided
        self._replicas = Replicas(prompt_of[: self._prompted], prompts - 1)

    def product(self, images: Tensor, matrices: Tensor) -> Tensor:
        """[B, heads, X] times its text's [P, heads, X, Y] for each image: [B, heads, Y]."""
        prompted, others = images.tensor_split((self._prompted,))
        one_text = others.transpose(0, 1) @ matrices[-1]  # [heads, B of these, Y]
        by_prompt = self._replicas.product(prompted, matrices[:-1])
        return torch.cat((by_prompt, one_text.transpose(0, 1)))

    def to(self, device: torch.device) -> Self:
        """The same with its tables on another device."""
        moved = copy.copy(self)
        moved._replicas = self._replicas.to(device)
        return moved


Tables = tuple[dict[LayerKind, SlotPlan], TextSharing]
"""What the layers on one device share."""


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


class CachedDecoder:
    """Draws the image tokens of a batch one after another.

    Call `prefill` once, then `decode_one_token` with each drawn token but the last.

    Args:
        model: the network, on its device and in its dtype.
        text: int64 [P, text_length], text ids of the prompts, 0 = pad.
        prompt_of: int64 [B], the prompt of each image, 0 ... P - 1.
        unguided: so many of the last images are the other branch of guidance, and all read the
            last text; only how they are laid out depends on it.
    """

    def __init__(self, model: Dalle, text: Tensor, prompt_of: Tensor, unguided: int = 0) -> None:
        config = model.config
        self.model = model
        self.prompt_of = prompt_of
        self._sharing: TextSharing = (
            GuidedReplicas(prompt_of, len(text), unguided)
            if unguided
            else Replicas(prompt_of, len(text))
        )
        self._kinds = [layer_kind(index, config.num_layers) for index in range(config.num_layers)]
        self._tables: dict[torch.device, Tables] = {}  # layers may lie on several devices
        self._text = model.embed_text(text)  # [P, T or T + 1, C]
        self._positions = model.image_positions()  # [H * W, C]
        length = config.text_length
        unseen = torch.ones(length, length, dtype=torch.bool, device=text.device).triu(1)
        self._causal = self._text.new_zeros(length, length).masked_fill(unseen, -torch.inf)
        self._image_head = self._pack_image_head()
        self._layers: list[LayerCache] = []
        self._cells = 0  # stored so far
        self._tokens = 0  # image tokens seen so far

    def prefill(self) -> Tensor:
        """Read the text. Returns the logits of the first image token, [B, image_vocab_size]."""
        shared = self.model.config.text_length  # of v2's T + 1 positions the last is a cell
        hidden = self.model.transformer(self._text[:, :shared], self._store_text)  # [P, T, C]
        if self._text.shape[1] > shared:
            return self._append(self._text[self.prompt_of, shared])
        return self._logits(hidden[:, -1])[self.prompt_of]

    def decode_one_token(self, token: Tensor) -> Tensor:
        """Read the image token drawn last, int64 [B]. Returns the logits of the next, [B, V]."""
        embedded = self.model.image_embeddings(token) + self._positions[self._tokens]
        self._tokens += 1
        return self._append(embedded)

    def _append(self, embedded: Tensor) -> Tensor:
        """Append a cell. embedded [B, C] -> [B, image_vocab_size]."""
        hidden = self.model.transformer(embedded, self._attend_from_cell)
        self._cells += 1
        return self._logits(hidden)

    def _logits(self, hidden: Tensor) -> Tensor:
        """[B, C] -> [B, image_vocab_size]."""
        if self._image_head is None:
            return self.model.image_logits(hidden)
        return self._image_head(self.model.to_logits[0](hidden))

    def _pack_image_head(self) -> PackedLinear | None:
        """The part of the head that is needed here, where that is faster."""
        head = self.model.to_logits[1]
        assert isinstance(head, nn.Linear)
        if not can_pack(head.weight):
            return None
        first = self.model.config.text_vocab_size
        return PackedLinear(head.weight[first:], head.bias[first:].detach())

    def _store_text(self, index: int) -> Attend:
        kind = self._kinds[index]

        def attend_and_store(projected: Tensor) -> Tensor:
            query, key, value = split_heads(projected, self.model.config.num_heads)
            plans, sharing = self._tables_on(key.device)
            self._layers.append(LayerCache(plans[kind], key, value, sharing))
            return merge_heads(attend(query, key, value, self._causal.to(key.device)))

        return attend_and_store

    def _tables_on(self, device: torch.device) -> Tables:
        if device not in self._tables:
            grid = self.model.config.grid
            plans = {kind: plan_slots(kind, grid, device) for kind in set(self._kinds)}
            self._tables[device] = plans, self._sharing.to(device)
        return self._tables[device]

    def _attend_from_cell(self, index: int) -> Attend:
        layer, cell = self._layers[index], self._cells
        return lambda projected: layer.attend(cell, projected)
