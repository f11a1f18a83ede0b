"""One step of the decoder on fixed tensors: read the token of each row, draw the next one.

Nothing in a step depends on a number of Python: the position is counted on the device, and how each
row is drawn, which prompt it has and what it sees are tables there. So the step can be captured as
one CUDA graph and replayed for all tokens of all batches.

Rows are computed independently, and always as many as there is room for, so an image does not
depend on the batch that it is in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from rudalle_lib.models.dalle import Attend, Dalle, DalleLayer, merge_heads, split_heads
from rudalle_lib.models.gpu.add_norms import add_and_normalise
from rudalle_lib.models.gpu.cell_attention import LayerCache, attend
from rudalle_lib.models.gpu.draw_settings import Drawn, DrawSettings, no_images
from rudalle_lib.models.gpu.draw_token import draw
from rudalle_lib.models.gpu.embed_token import embed_and_normalise
from rudalle_lib.models.gpu.image_groups import empty_groups, group_rows, set_groups
from rudalle_lib.models.gpu.products import linear, linear_gelu, rounds_inputs
from rudalle_lib.models.gpu.slot_tables import slot_tables
from rudalle_lib.models.layers.triton_support import BoundedRows, RoundedRows
from rudalle_lib.models.sparse_attention import attend as attend_densely
from rudalle_lib.models.sparse_attention import layer_kind

PREFILL_PROMPTS = 8
"""Prompts that are read together, always as many: the last ones of a batch are filled up."""


class Room(NamedTuple):
    """What a step has room for.

    Attributes:
        rows: images, with those of the empty text for guidance.
        prompts: different texts.
        groups: groups of rows of one prompt; see `image_groups`.
    """

    rows: int
    prompts: int
    groups: int


class DecoderStep:
    """The step of a decoder. It refers to parts of the network, but not to the network itself.

    Args:
        model: the network, on one device.
        room: what there is room for.
    """

    def __init__(self, model: Dalle, room: Room) -> None:
        config, embeddings = model.config, model.image_embeddings.weight
        self.room, self.device = room, embeddings.device
        self._config = config
        self._embeddings, self._positions = embeddings, model.image_positions()
        self._layers = [cast(DalleLayer, layer) for layer in model.transformer.layers]
        norm, head = model.to_logits
        assert isinstance(head, nn.Linear)
        self._head_norm, first = norm, config.text_vocab_size
        self._head = head.weight[first:], head.bias[first:]
        self._final_norm = model.transformer.final_layernorm
        kinds = [layer_kind(index, config.num_layers) for index in range(config.num_layers)]
        self._tables = [slot_tables(kind, config.grid, self.device) for kind in kinds]

        rows, length = room.rows, config.image_length
        self.settings = no_images(rows, length, self.device)
        self.drawn = Drawn(
            torch.zeros(rows, length, dtype=torch.int64, device=self.device),
            torch.zeros(rows, length, device=self.device),
            torch.zeros(rows, dtype=torch.int64, device=self.device),
        )
        self.groups = empty_groups(room.groups, self.device)
        # Image tokens read and cells stored so far.
        self._counters = torch.zeros(2, dtype=torch.int32, device=self.device)
        self._hidden = embeddings.new_zeros(rows, config.hidden_size)
        self._normalised = torch.zeros_like(self._hidden)
        self._rounded = RoundedRows(
            torch.zeros_like(self._hidden, dtype=torch.int8),
            torch.zeros(rows, device=self.device),
        )
        self._contexts = torch.zeros_like(self._hidden)
        # Largest contexts, for layers whose next product rounds them; 0 when a step begins.
        bounded = [rounds_inputs(layer.attention.dense) for layer in self._layers]
        self._largest = torch.zeros(sum(bounded), rows, device=self.device)
        largest = iter(self._largest)
        self._contexts_of = [
            BoundedRows(self._contexts, next(largest)) if is_bounded else self._contexts
            for is_bounded in bounded
        ]
        self._logits = embeddings.new_zeros(rows, config.image_vocab_size)
        self._caches = [self._new_cache(tables.size) for tables in self._tables]
        length = config.text_length
        future = torch.ones(length, length, dtype=torch.bool, device=self.device).triu(1)
        self._causal = embeddings.new_zeros(length, length).masked_fill(future, -torch.inf)

    def start(
        self, model: Dalle, text: Tensor, prompt_of: Sequence[int], settings: DrawSettings
    ) -> None:
        """Begin a batch: read its texts, and draw the first token of each image.

        Args:
            model: the network of this step.
            text: int64 [P, text_length], text ids of the prompts, 0 = pad.
            prompt_of: the prompt of each row, at most as many as there is room for.
            settings: of the images, which are the first rows.
        """
        set_groups(self.groups, group_rows(prompt_of))
        self.settings.set_rows(settings)
        self._counters.zero_()
        embedded = model.embed_text(text.to(self.device))  # [P, T or T + 1, C]
        shared = self._config.text_length  # in v2 the last of the T + 1 positions is a cell
        prompts = torch.tensor(prompt_of, device=self.device)
        last = torch.cat(list(self._read_texts(model, embedded[:, :shared])))  # [P, C]
        if embedded.shape[1] > shared:
            self._hidden[: len(prompts)].copy_(embedded[prompts, shared])
            # Nothing is added; what is needed is the norm of the first layer.
            nothing, first = torch.zeros_like(self._hidden), self._layers[0]
            rows = self._rows_for(first.attention.query_key_value)
            add_and_normalise(self._hidden, nothing, nn.Identity(), first.input_layernorm, rows)
            self._run_layers()
            self._counters[1] += 1
        else:
            self._normalised[: len(prompts)].copy_(last[prompts])
        self._write_logits()
        self._draw()

    def advance(self) -> None:
        """Read the latest token of each row, and draw the next one. This is what is captured."""
        first = self._layers[0]
        embed_and_normalise(
            self._hidden, self.drawn.latest, self._embeddings, self._positions, self._counters[:1],
            first.input_layernorm, self._rows_for(first.attention.query_key_value),
        )  # fmt: skip
        self._run_layers()
        self._write_logits()
        self._counters.add_(1)
        self._draw()

    def _run_layers(self) -> None:
        """Store a cell of each row in all layers.

        The hidden states are normalised for the first layer, and in the end for the logits.
        """
        hidden, cell, layers = self._hidden, self._counters[1:], self._layers
        nexts: list[tuple[nn.LayerNorm, Tensor | RoundedRows]] = [
            (layer.input_layernorm, self._rows_for(layer.attention.query_key_value))
            for layer in layers[1:]
        ]
        nexts.append((self._final_norm, self._normalised))
        self._largest.zero_()
        for layer, following, contexts, cache, tables in zip(
            layers, nexts, self._contexts_of, self._caches, self._tables, strict=True
        ):
            attention, mlp = layer.attention, layer.mlp
            rows = self._rows_for(attention.query_key_value)
            projected = linear(attention.query_key_value, rows)
            attend(contexts, projected, cache, cell, tables, self.groups)
            branch, rows = linear(attention.dense, contexts), self._rows_for(mlp.dense_h_to_4h)
            sandwich, norm = layer.before_first_addition_layernorm, layer.post_attention_layernorm
            add_and_normalise(hidden, branch, sandwich, norm, rows)
            branch = linear(mlp.dense_4h_to_h, linear_gelu(mlp.dense_h_to_4h, rows))
            add_and_normalise(hidden, branch, layer.before_second_addition_layernorm, *following)

    def _rows_for(self, layer: nn.Module) -> Tensor | RoundedRows:
        """Where a norm writes the inputs of a product: in the precision that it takes."""
        return self._rounded if rounds_inputs(layer) else self._normalised

    def _write_logits(self) -> None:
        weight, bias = self._head
        torch.addmm(bias, self._head_norm(self._normalised), weight.t(), out=self._logits)

    def _draw(self) -> None:
        draw(self._logits, self.settings, self._counters[:1], self.drawn)

    def _new_cache(self, slots: int) -> LayerCache:
        config, room = self._config, self.room
        heads, width = config.num_heads, config.hidden_size // config.num_heads
        cells = (room.rows, heads, slots, width)
        texts = (room.prompts, heads, config.text_length, width)
        return LayerCache(*(self._embeddings.new_empty(s) for s in (cells, cells, texts, texts)))

    def _read_texts(self, model: Dalle, embedded: Tensor) -> Iterator[Tensor]:
        """Store keys and values of texts [P, T, C]; yields the last states, [<= 8, C] each."""
        for start in range(0, len(embedded), PREFILL_PROMPTS):
            texts = embedded[start : start + PREFILL_PROMPTS]
            count = len(texts)
            texts = functional.pad(texts, (0, 0, 0, 0, 0, PREFILL_PROMPTS - count))
            stored = slice(start, start + count)
            hidden = model.transformer(texts, lambda index, at=stored: self._store_text(index, at))
            yield hidden[:count, -1]

    def _store_text(self, index: int, prompts: slice) -> Attend:
        cache, count = self._caches[index], prompts.stop - prompts.start

        def attend_and_store(projected: Tensor) -> Tensor:
            query, key, value = split_heads(projected, self._config.num_heads)
            cache.text_key[prompts] = key[:count]
            cache.text_value[prompts] = value[:count]
            return merge_heads(attend_densely(query, key, value, self._causal))

        return attend_and_store
