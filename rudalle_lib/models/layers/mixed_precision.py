"""Image networks in lower precision and in channels-last layout, for speed.

On CPUs with native bfloat16 a convolution takes half the time in that dtype. Its coarse steps would
show as bands in smooth areas, so the layers that produce the pixels stay in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

STRIP_ROWS = 32
"""Image rows that are converted and convolved together in `conv_in_strips`."""


@runtime_checkable
class Foldable(Protocol):
    """A layer that can combine its weights to need fewer products, with different rounding."""

    def fold(self) -> None:
        """Combine the weights, which must not change afterwards."""


def use_dtype(network: nn.Module, dtype: torch.dtype, keep_float32: Sequence[str] = ()) -> None:
    """Convert a network's layers to a dtype and its weights to channels-last layout, in place.

    Below float32, layers that are `Foldable` are folded.

    Args:
        network: with its weights.
        dtype: target dtype.
        keep_float32: layers that are not converted, by the last part of their names.
    """
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for name, layer in network.named_modules():
        if dtype != torch.float32 and isinstance(layer, Foldable):
            layer.fold()
        is_leaf = next(layer.children(), None) is None
        if is_leaf and name.rpartition(".")[2] not in keep_float32:
            layer.to(dtype)


def conv_in_strips(conv: nn.Conv2d, hidden: Tensor) -> Tensor:
    """Apply a 3x3 convolution in its own dtype to an input of possibly lower precision.

    The result has the same bits as the convolution of the whole input, but the input is converted
    strip by strip, so there is never a converted copy of all of it.

    Args:
        conv: 3x3 convolution with padding 1.
        hidden: [B, C, H, W].
    """
    if hidden.dtype == conv.weight.dtype:
        return conv(hidden)
    height, outputs = hidden.shape[2], []
    for top in range(0, height, STRIP_ROWS):
        above, rows = min(top, 1), min(STRIP_ROWS, height - top)  # the first strip has no row above
        strip = hidden[:, :, top - above : top + rows + 1]
        outputs.append(conv(strip.to(conv.weight.dtype))[:, :, above : above + rows])
    return torch.cat(outputs, dim=2)
