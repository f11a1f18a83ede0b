"""Networks of pictures in less precision, and laid out pixel by pixel, for speed.

In bfloat16 a convolution takes half the time where the processor knows it. A picture with such
steps would show bands in an even sky, so the layers that make the pixels stay in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

#: Rows of a picture that are convolved at a time where they have to be made more precise for it.
STRIP = 32


@runtime_checkable
class Folding(Protocol):
    """A layer that can do with fewer products, whose sums round differently."""

    def fold(self) -> None:
        """Do so from now on; the weights must not change any more."""


def use_dtype(network: nn.Module, dtype: torch.dtype, exact: Sequence[str] = ()) -> None:
    """Give a network's layers a precision, and its weights the channels-last layout.

    Args:
        network: with its weights.
        dtype: of the layers.
        exact: last parts of the names of layers that stay as they are.
    """
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for name, layer in network.named_modules():
        if dtype != torch.float32 and isinstance(layer, Folding):
            layer.fold()
        is_leaf = next(layer.children(), None) is None
        if is_leaf and name.rpartition(".")[2] not in exact:
            layer.to(dtype)


def in_strips(conv: nn.Conv2d, hidden: Tensor) -> Tensor:
    """A 3x3 convolution of [B, C, H, W] in its own precision, where that is more than hidden's.

    Gives the same bits as of the whole, but no copy of all of hidden is made.
    """
    if hidden.dtype == conv.weight.dtype:
        return conv(hidden)
    height, done = hidden.shape[2], []
    for top in range(0, height, STRIP):
        first, rows = min(top, 1), min(STRIP, height - top)  # without the row above
        strip = hidden[:, :, top - first : top + rows + 1]
        done.append(conv(strip.to(conv.weight.dtype))[:, :, first : first + rows])
    return torch.cat(done, dim=2)
