"""Networks of pictures in less precision, and laid out pixel by pixel, for speed.

In bfloat16 a convolution takes half the time where the processor knows it. A picture with such
steps would show bands in an even sky, so the layers that make the pixels stay in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from rudalle_lib.models.doubling_conv import DoublingConv


def use_dtype(network: nn.Module, dtype: torch.dtype, exact: Sequence[str] = ()) -> None:
    """Give a network's layers a precision, and its weights the channels-last layout.

    Args:
        network: with its weights.
        dtype: of the layers.
        exact: last parts of the names of layers that stay as they are.
    """
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for name, layer in network.named_modules():
        is_leaf = next(layer.children(), None) is None
        if is_leaf and name.rpartition(".")[2] not in exact:
            if isinstance(layer, DoublingConv) and dtype != torch.float32:
                layer.fold()
            layer.to(dtype)
