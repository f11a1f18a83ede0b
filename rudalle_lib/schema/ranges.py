"""The ranges of the settings that a row of the prompt table may override, each declared once.

The configuration, the rows of a prompt table and `SamplingSettings` all check against these, so a
value that one of them accepts is accepted by the others. Every value in a range fits the Arrow
column of its setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

INT32_MAX = 2**31 - 1
"""The largest value of an int32 column of Arrow, and of a C `int`."""

INT64_MAX = 2**63 - 1
"""The largest value of an int64 column of Arrow."""

MAX_SIDE = 8192
"""The longest side of a canvas, in either unit of `generate.size_unit`."""


@dataclass(frozen=True, slots=True)
class Range:
    """The values that a setting may have.

    Attributes:
        kind: int or float.
        minimum: the smallest value, or the largest that is too small if `exclusive_minimum`.
        maximum: the largest value.
        exclusive_minimum: whether `minimum` itself is outside.
    """

    kind: type[int] | type[float]
    minimum: float
    maximum: float
    exclusive_minimum: bool = False

    def __contains__(self, value: float) -> bool:
        """Whether a number is in the range; NaN is not."""
        too_small = value <= self.minimum if self.exclusive_minimum else value < self.minimum
        return not too_small and value <= self.maximum

    def __str__(self) -> str:
        """In words: `a whole number from 1 to 1,000`."""
        number = "a whole number" if self.kind is int else "a number"
        if self.exclusive_minimum:
            return f"{number} above {self.minimum:,} and at most {self.maximum:,}"
        return f"{number} from {self.minimum:,} to {self.maximum:,}"


IMAGES = Range(int, 1, 1000)
SEED = Range(int, 0, INT64_MAX)
TEMPERATURE = Range(float, 0, 100, exclusive_minimum=True)
TOP_K = Range(int, 0, INT32_MAX)
TOP_P = Range(float, 0, 1, exclusive_minimum=True)
GUIDANCE = Range(float, 0, 100)
SIDE = Range(int, 1, MAX_SIDE)

RANGES: Mapping[str, Range] = {
    "images": IMAGES,
    "seed": SEED,
    "temperature": TEMPERATURE,
    "top_k": TOP_K,
    "top_p": TOP_P,
    "guidance": GUIDANCE,
    "width": SIDE,
    "height": SIDE,
}
"""The ranges by the name of the setting, which is that of its column."""
