"""One kind of layer put in the place of another, wherever it stands in a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", bound=nn.Module)


def replace_layers(
    module: nn.Module, kind: type[Layer], replacement: Callable[[Layer], nn.Module]
) -> None:
    """Replace every layer of a kind below a module; `replacement` may give the layer itself back.

    One after the other, so that no more than one layer is in memory twice.
    """
    for name, child in module.named_children():
        if isinstance(child, kind):
            setattr(module, name, replacement(child))
        else:
            replace_layers(child, kind, replacement)
