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
from typing import Protocol, Self

import torch
from torch import Tensor

from rudalle_lib.models.dalle import Attend, Dalle
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
        """[B, heads, 1, X] times its text's [P, heads, X, Y] for each image: [B, heads, 1, Y]."""

    def to(self, device: torch.device) -> Self:
        """The same with its tables on another device."""


class Replicas:
    """Which images of a batch share a prompt, as index tables.

    Images are laid out as [prompts, R], R being the largest number of images of one prompt, so
    that one matrix product per prompt serves all its images; spare places repeat the first image.

    Args:
        prompt_of: int64 [B], the prompt of each image, 0 ... prompts - 1.
        prompts: number of prompts.
    """

    def __init__(self, prompt_of: Tensor, prompts: int) -> None:
        self.images = len(prompt_of)
        same = prompt_of[:, None] == prompt_of[None, :]  # [B, B]
        rank = same.tril(-1).sum(1)  # of each image among those of its prompt
        most = int(rank.max()) + 1
        self.place = prompt_of * most + rank  # [B], of each image in the layout
        image = torch.zeros(prompts * most, dtype=torch.int64, device=prompt_of.device)
        image[self.place] = torch.arange(len(prompt_of), device=prompt_of.device)
        self.image = image.view(prompts, most)  # [P, R], the image at each place

    def product(self, images: Tensor, matrices: Tensor) -> Tensor:
        """[B, heads, 1, X] times its prompt's [P, heads, X, Y] for each image: [B, heads, 1, Y]."""
        return self.by_image(self.by_prompt(images) @ matrices)

    def to(self, device: torch.device) -> Self:
        """The same with its tables on another device."""
        moved = copy.copy(self)
        moved.place, moved.image = self.place.to(device), self.image.to(device)
        return moved

    def by_prompt(self, images: Tensor) -> Tensor:
        """[B, heads, 1, D] -> [P, heads, R, D]."""
        return images[:, :, 0][self.image].transpose(1, 2)

    def by_image(self, prompts: Tensor) -> Tensor:
        """[P, heads, R, D] -> [B, heads, 1, D]."""
        return prompts.transpose(1, 2).flatten(0, 1)[self.place].unsqueeze(2)


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
        """[B, heads, 1, X] times its text's [P, heads, X, Y] for each image: [B, heads, 1, Y]."""
        prompted, others = images.tensor_split((self._prompted,))
        one_text = others[:, :, 0].transpose(0, 1) @ matrices[-1]  # [heads, B of these, Y]
        by_prompt = self._replicas.product(prompted, matrices[:-1])
        return torch.cat((by_prompt, one_text.transpose(0, 1).unsqueeze(2)))

    def to(self, device: torch.device) -> Self:
        """The same with its tables on another device."""
        moved = copy.copy(self)
        moved._replicas = self._replicas.to(device)
        return moved


Tables = tuple[dict[LayerKind, SlotPlan], TextSharing]
"""What the layers on one device share."""


class LayerCache:
    """Keys and values of one layer.

    Args:
        plan: where cells are kept.
        text_key: [P, heads, T, D], one a prompt.
        text_value: the same.
        sharing: which image reads which text.
    """

    def __init__(
        self, plan: SlotPlan, text_key: Tensor, text_value: Tensor, sharing: TextSharing
    ) -> None:
        _, heads, _, width = text_key.shape
        self.plan = plan
        self.sharing = sharing
        self.text_key, self.text_value = text_key, text_value
        shape = (sharing.images, heads, plan.size, width)
        self.key, self.value = text_key.new_empty(shape), text_key.new_empty(shape)

    def attend(self, cell: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store a cell and attend from it to the text and to the cells it sees.

        Args:
            cell: its number; all cells before it have been stored.
            query: [B, heads, 1, D], as are key, value and the result.
        """
        slot, visible = self.plan.slot[cell], self.plan.visible[cell]
        self.key[:, :, slot], self.value[:, :, slot] = key[:, :, 0], value[:, :, 0]
        query = query / math.sqrt(query.shape[-1])
        of_text = self.sharing.product(query, self.text_key.transpose(2, 3))
        of_cells = query @ self.key[:, :, visible].transpose(2, 3)
        weights = torch.cat((of_text, of_cells), dim=-1).softmax(dim=-1)  # [B, heads, 1, T + K]
        of_text, of_cells = weights.tensor_split((self.text_key.shape[2],), dim=-1)
        from_text = self.sharing.product(of_text, self.text_value)
        return from_text + of_cells @ self.value[:, :, visible]


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
        self._layers: list[LayerCache] = []
        self._cells = 0  # stored so far
        self._tokens = 0  # image tokens seen so far

    def prefill(self) -> Tensor:
        """Read the text. Returns the logits of the first image token, [B, image_vocab_size]."""
        shared = self.model.config.text_length  # of v2's T + 1 positions the last is a cell
        hidden = self.model.transformer(self._text[:, :shared], self._store_text)  # [P, T, C]
        if self._text.shape[1] > shared:
            return self._logits(self._text[self.prompt_of, shared:])
        return self.model.image_logits(hidden[:, -1])[self.prompt_of]

    def decode_one_token(self, token: Tensor) -> Tensor:
        """Read the image token drawn last, int64 [B]. Returns the logits of the next, [B, V]."""
        embedded = self.model.image_embeddings(token) + self._positions[self._tokens]
        self._tokens += 1
        return self._logits(embedded[:, None])

    def _logits(self, embedded: Tensor) -> Tensor:
        """Append a cell. embedded [B, 1, C] -> [B, image_vocab_size]."""
        hidden = self.model.transformer(embedded, self._attend_from_cell)
        self._cells += 1
        return self.model.image_logits(hidden[:, 0])

    def _store_text(self, index: int) -> Attend:
        kind = self._kinds[index]

        def attend_and_store(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            plans, sharing = self._tables_on(key.device)
            self._layers.append(LayerCache(plans[kind], key, value, sharing))
            return attend(query, key, value, self._causal.to(key.device))

        return attend_and_store

    def _tables_on(self, device: torch.device) -> Tables:
        if device not in self._tables:
            grid = self.model.config.grid
            plans = {kind: plan_slots(kind, grid, device) for kind in set(self._kinds)}
            self._tables[device] = plans, self._sharing.to(device)
        return self._tables[device]

    def _attend_from_cell(self, index: int) -> Attend:
        layer, cell = self._layers[index], self._cells
        return lambda query, key, value: layer.attend(cell, query, key, value)
