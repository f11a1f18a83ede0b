"""All decoder layers for one new cell of each image, in one compiled call.

If linear layers, norms and attention are all compiled, Python only sets the position of the cell. A
step of separate calls, some two hundred, spends a tenth of its time in Python, because weights and
cache have evicted what Python needs from the CPU caches. All layers and steps write to the same few
tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeGuard, cast

from torch import Tensor, nn

from rudalle_lib.kernels import Operation, Program
from rudalle_lib.models.dalle import DalleLayer, DalleTransformer
from rudalle_lib.models.decoding.layer_cache import LayerCache
from rudalle_lib.models.decoding.native_cache import NativeLayerCache
from rudalle_lib.models.layers.compiled_linear import CompiledLinear, Workspace
from rudalle_lib.models.layers.fused_layer_norm import FusedLayerNorm


class FusedStep:
    """Computes what `DalleTransformer` does if each layer attends with its cache.

    Args:
        transformer: the layers, which must satisfy `can_fuse`.
        caches: one per layer, which must satisfy `are_native`.
        images: number of images in the batch.
    """

    def __init__(
        self, transformer: DalleTransformer, caches: Sequence[NativeLayerCache], images: int
    ) -> None:
        norm = _norm(transformer.final_layernorm)
        width, self._caches = len(norm.weight), caches
        workspace, empty = Workspace(), norm.weight.new_empty
        self._hidden, self._narrow = empty(images, width), empty(2, images, width)
        self._projected, self._wide = empty(images, 3 * width), empty(images, 4 * width)
        operations = [
            operation
            for layer, cache in zip(transformer.layers, caches, strict=True)
            for operation in self._operations(cast(DalleLayer, layer), cache, workspace)
        ]
        self._program = Program([*operations, norm.bind(self._narrow[0], self._hidden)])

    def __call__(self, embedded: Tensor, cell: int) -> Tensor:
        """Run all layers.

        Args:
            embedded: [B, C], the embedding of the new cell of each image.
            cell: its number.

        Returns:
            [B, C], overwritten by the next call.
        """
        self._hidden.copy_(embedded)
        for cache in self._caches:
            cache.set_position(cell)
        self._program.run()
        return self._narrow[0]

    def _operations(
        self, layer: DalleLayer, cache: NativeLayerCache, workspace: Workspace
    ) -> Iterator[Operation]:
        """The operations of `DalleLayer.forward`, which update `_hidden`."""
        hidden, projected, wide, (first, second) = (
            self._hidden, self._projected, self._wide, self._narrow,
        )  # fmt: skip
        attention, mlp = layer.attention, layer.mlp
        yield _norm(layer.input_layernorm).bind(first, hidden)
        yield _linear(attention.query_key_value).bind(projected, first, workspace)
        yield cache.bind(first, projected)
        yield _linear(attention.dense).bind(second, first, workspace)
        yield _norm(layer.before_first_addition_layernorm).bind(hidden, second, hidden)
        yield _norm(layer.post_attention_layernorm).bind(first, hidden)
        yield _linear(mlp.dense_h_to_4h).bind(wide, first, workspace, gelu=True)
        yield _linear(mlp.dense_4h_to_h).bind(second, wide, workspace)
        yield _norm(layer.before_second_addition_layernorm).bind(hidden, second, hidden)


def _norm(part: nn.Module) -> FusedLayerNorm:
    assert isinstance(part, FusedLayerNorm)
    return part


def _linear(part: nn.Module) -> CompiledLinear:
    assert isinstance(part, CompiledLinear)
    return part


def are_native(caches: Sequence[LayerCache]) -> TypeGuard[Sequence[NativeLayerCache]]:
    """Whether all layers attend with compiled kernels."""
    return all(isinstance(cache, NativeLayerCache) for cache in caches)


def can_fuse(transformer: DalleTransformer) -> bool:
    """Whether all linear layers and norms of the layers are compiled."""
    parts = [part for part in transformer.modules() if not list(part.children())]
    return all(isinstance(part, FusedLayerNorm | CompiledLinear) for part in parts)
