"""Replacing layers of one type by others, anywhere in a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", bound=nn.Module)


def replace_layers(
    module: nn.Module, kind: type[Layer], replacement: Callable[[Layer], nn.Module]
) -> None:
    """Replace every layer of a type below a module, in place.

    Layers are replaced one at a time, so at most one of them is in memory twice.

    Args:
        module: a network or a part of one; it is not replaced itself.
        kind: type of the layers to replace.
        replacement: builds the new layer; may return its argument to keep it.
    """
    for name, child in module.named_children():
        if isinstance(child, kind):
            setattr(module, name, replacement(child))
        else:
            replace_layers(child, kind, replacement)
