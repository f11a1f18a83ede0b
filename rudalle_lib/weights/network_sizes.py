"""Check the sizes of a network that a `config.json` gives, before the network is built.

A number in a file of a few bytes could otherwise ask for a network that takes hours to build.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

MAX_SIZE = 2**24
"""Largest width, vocabulary, length or id. The largest published one is 65,001 pieces."""

MAX_LAYERS = 256
"""Largest number of layers or blocks. The largest published one is 64."""

MAX_LEVELS = 16
"""Longest list of sizes, such as one per level of a VQ-GAN."""

MAX_NAME = 100
"""Longest text, such as the name of an activation."""


def check_sizes(config: type, values: Mapping[str, Any]) -> None:
    """Check values for a configuration class.

    Args:
        config: a dataclass. A field whose name contains "layer", "block" or "depth" is a number of
            layers.
        values: by the name of a field.

    Raises:
        ValueError: a value has another type than its field, or is too large.
    """
    hints = get_type_hints(config)
    for name, value in values.items():
        is_depth = any(part in name for part in ("layer", "block", "depth"))
        _check(name, value, hints[name], MAX_LAYERS if is_depth else MAX_SIZE)


def _check(name: str, value: Any, hint: Any, limit: int) -> None:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return
        fitting = [option for option in options if _is_type(value, option)]
        hint = fitting[0] if fitting else options[0]
    if not _is_type(value, hint):
        raise ValueError(f"{name}: expected {_expected(hint)}, found {_shown(value)}")
    if isinstance(value, str):
        if len(value) > MAX_NAME:
            raise ValueError(f"{name}: expected a short text, found {len(value):,} characters")
    elif isinstance(value, Sequence):
        if len(value) > MAX_LEVELS:
            raise ValueError(f"{name}: expected at most {MAX_LEVELS} values, found {len(value):,}")
        for item in value:
            _check(name, item, get_args(hint)[0], limit)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, found {value}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        smallest = -limit if hint is float else 0 if name.endswith("_id") else 1
        if not smallest <= value <= limit:
            raise ValueError(
                f"{name}: expected a number from {smallest:,} to {limit:,}, found {_shown(value)}"
            )


def _is_type(value: Any, hint: Any) -> bool:
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return type(value) is int
    if get_origin(hint) in (tuple, list, Sequence):
        return isinstance(value, tuple | list)
    return isinstance(hint, type) and isinstance(value, hint)


def _expected(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names.get(hint, "a list of numbers")


def _shown(value: Any) -> str:
    """A value for an error, shortened; its repr may be endless."""
    if isinstance(value, int) and abs(value) > 10**20:
        return "a very large number"
    return repr(value)[:50] if isinstance(value, int | float | str) else type(value).__name__
