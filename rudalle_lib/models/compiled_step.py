"""All layers of the decoder for one new cell of each image, in one compiled call.

Where linear layers, norms and attention are all compiled, Python is left with nothing but to say
which cell it is. Called one by one, some two hundred functions a step, it takes a tenth of the
time, as weights and cache have driven out of the processor's caches whatever it needs. Results go
to the same few tensors at every step, and from layer to layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeGuard, cast

from torch import Tensor, nn

from rudalle_lib.models.cell_attention import CompiledLayerCache
from rudalle_lib.models.compiled_layer_norm import CompiledLayerNorm
from rudalle_lib.models.dalle import DalleLayer, DalleTransformer
from rudalle_lib.models.layer_cache import LayerCache
from rudalle_lib.models.native import Operation, Program
from rudalle_lib.models.tiled_linear import AnyTiledLinear, Room


class CompiledStep:
    """Does what `DalleTransformer` does where each layer attends by its cache.

    Args:
        transformer: the layers; see `can_compile`.
        caches: those of the layers; see `are_compiled`.
        images: in a batch.
    """

    def __init__(
        self, transformer: DalleTransformer, caches: Sequence[CompiledLayerCache], images: int
    ) -> None:
        norm = _norm(transformer.final_layernorm)
        width, self._caches = len(norm.weight), caches
        room, empty = Room(), norm.weight.new_empty
        self._hidden, self._narrow = empty(images, width), empty(2, images, width)
        self._projected, self._wide = empty(images, 3 * width), empty(images, 4 * width)
        operations = [
            operation
            for layer, cache in zip(transformer.layers, caches, strict=True)
            for operation in self._operations(cast(DalleLayer, layer), cache, room)
        ]
        self._program = Program([*operations, norm.into(self._narrow[0], self._hidden)])

    def __call__(self, embedded: Tensor, cell: int) -> Tensor:
        """Embedded cells [B, C] to what the layers make of them, [B, C], until the next call."""
        self._hidden.copy_(embedded)
        for cache in self._caches:
            cache.go_to(cell)
        self._program.run()
        return self._narrow[0]

    def _operations(
        self, layer: DalleLayer, cache: CompiledLayerCache, room: Room
    ) -> Iterator[Operation]:
        """As `DalleLayer.forward`, from `hidden` to `hidden`."""
        hidden, projected, wide, (here, there) = (
            self._hidden, self._projected, self._wide, self._narrow,
        )  # fmt: skip
        attention, mlp = layer.attention, layer.mlp
        yield _norm(layer.input_layernorm).into(here, hidden)
        yield _linear(attention.query_key_value).into(projected, here, room)
        yield cache.into(here, projected)
        yield _linear(attention.dense).into(there, here, room)
        yield _norm(layer.before_first_addition_layernorm).into(hidden, there, hidden)
        yield _norm(layer.post_attention_layernorm).into(here, hidden)
        yield _linear(mlp.dense_h_to_4h).into(wide, here, room, gelu=True)
        yield _linear(mlp.dense_4h_to_h).into(there, wide, room)
        yield _norm(layer.before_second_addition_layernorm).into(hidden, there, hidden)


def _norm(part: nn.Module) -> CompiledLayerNorm:
    assert isinstance(part, CompiledLayerNorm)
    return part


def _linear(part: nn.Module) -> AnyTiledLinear:
    assert isinstance(part, AnyTiledLinear)
    return part


def are_compiled(
    caches: Sequence[LayerCache | CompiledLayerCache],
) -> TypeGuard[Sequence[CompiledLayerCache]]:
    """Whether all layers attend by what is compiled."""
    return all(isinstance(cache, CompiledLayerCache) for cache in caches)


def can_compile(transformer: DalleTransformer) -> bool:
    """Whether all other parts of all layers are compiled."""
    parts = [part for part in transformer.modules() if not list(part.children())]
    return all(isinstance(part, CompiledLayerNorm | AnyTiledLinear) for part in parts)
