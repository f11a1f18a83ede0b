"""Which images are kept: decisions of people, and what the rules of a run decided, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

KEEP: Literal["keep"] = "keep"
REJECT: Literal["reject"] = "reject"

DECISIONS = (KEEP, REJECT)
"""What may be decided about an image."""


class ByHand(NamedTuple):
    """What was decided about an image, and why."""

    decision: Literal["keep", "reject"]
    note: str = ""


class Alike(NamedTuple):
    """The earlier image that an image is much like: cosine distance, or bits of their hashes."""

    image_id: str
    distance: float | None = None
    bits: int | None = None


@dataclass(frozen=True, slots=True)
class GroupCounts:
    """A group of images: before a rule and after it, and the lowest score that it kept."""

    group: str
    before: int
    kept: int
    lowest: float | None


@dataclass(frozen=True, slots=True)
class RuleCounts:
    """A rule of `select`: images before it and after it, in all and by group."""

    rule: str
    before: int
    kept: int
    groups: tuple[GroupCounts, ...] = ()


@dataclass(frozen=True, slots=True)
class SelectionRecord:
    """What decided which images of a run are kept, beside the settings of `score`.

    `curation` is the SHA-256 of the decisions by hand, empty if there were none. `digest` is that
    of all decisions; two runs with the same one keep the same images. `rules` are only counted if
    one of them looks across shards.
    """

    curation: str = ""
    digest: str = ""
    rules: tuple[RuleCounts, ...] = ()

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        """The record in a manifest."""
        rules = [
            RuleCounts(**{**rule, "groups": tuple(GroupCounts(**one) for one in rule["groups"])})
            for rule in data.get("rules", ())
        ]
        return cls(**{**data, "rules": tuple(rules)})


NOTHING_ELSE = SelectionRecord()
"""Only the settings of `score` decided."""
