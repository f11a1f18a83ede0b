"""Borders of an image prompt: how many rows and columns of tokens are kept along each edge.

They are parsed from text such as `up=4 left=2`, from JSON or from a mapping. `str()` returns the
canonical form, which is the one that is stored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

MAX_BORDER = 1024
"""The largest border, in tokens."""


@dataclass(frozen=True, slots=True)
class Borders:
    """Tokens kept along each edge, 0 to 1,024 each; at least one edge has a border.

    Raises:
        ValueError: a border is not a whole number or out of range, or all are 0.
    """

    up: int = 0
    down: int = 0
    left: int = 0
    right: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        sides = asdict(self)
        for name, tokens in sides.items():
            if not isinstance(tokens, int) or not 0 <= tokens <= MAX_BORDER:
                raise ValueError(f"{name}: expected 0 ... {MAX_BORDER} tokens, found {tokens!r}")
        if not any(sides.values()):
            raise ValueError("expected a border of at least 1 token, found none")

    def __str__(self) -> str:
        """The canonical form: sides in a fixed order, without those that are 0."""
        return " ".join(f"{name}={tokens}" for name, tokens in asdict(self).items() if tokens)

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Parse `up=4 left=2` (also with `:`, `,` or `;`), a JSON object, or a mapping.

        Raises:
            ValueError: the value has another form, an unknown side, or a number out of range.
        """
        pairs = _pairs(value)
        unknown = sorted(set(pairs) - set(cls.__slots__))
        if unknown:
            raise ValueError(f"expected up, down, left and right, found {unknown[0]!r:.40}")
        return cls(**{name: _whole_number(name, tokens) for name, tokens in pairs.items()})


def _pairs(value: Any) -> dict[str, Any]:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"not a JSON object: {value!r:.60}") from None
    if isinstance(value, Mapping):
        return {str(name): 0 if tokens is None else tokens for name, tokens in value.items()}
    words = re.split(r"[\s,;]+", value) if isinstance(value, str) else []
    pairs = [word.replace(":", "=").partition("=")[::2] for word in words if word]
    if not pairs or len(dict(pairs)) < len(pairs):
        raise ValueError(f"expected sides such as 'up=4 left=2', found {value!r:.60}")
    return dict(pairs)


def _whole_number(name: str, tokens: Any) -> int:
    try:
        number = int(tokens) if isinstance(tokens, str | int | float) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or isinstance(tokens, bool) or float(tokens) != number:
        raise ValueError(f"{name}: expected a whole number of tokens, found {tokens!r:.40}")
    return number
