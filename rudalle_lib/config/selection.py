"""The rules by which images are selected after scoring: the section `select`.

A rule has one key that says what it does, and `per`, which says among which images. Rules are
applied in their order, each to the images that the ones before it have left.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from rudalle_lib.config.base import Positive, Section, TableUrl, Url

PROMPT = "prompt"
"""Value of `per`: the images of one prompt."""

DATASET = "dataset"
"""Value of `per`: all images."""

Column = Annotated[str, Field(min_length=1, max_length=200)]
"""The name of a column of the prompt table."""


class Rule(Section):
    """One rule; exactly one of its keys but `per` is given."""

    min_score: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="Reject images whose score is lower, as `score.min_score` does.",
    )
    min_scores: TableUrl | None = Field(
        default=None,
        description="A table, CSV or Parquet, with a column `min_score` and columns of the prompt "
        "table: images of prompts with a row's values need its score. The first row that matches "
        "counts, and an empty value matches any.",
    )
    keep_best: Positive | None = Field(
        default=None,
        description="Keep this many images, the best by score, `per` prompt, group or dataset.",
    )
    keep_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Keep this share of the images, the best by score, `per` prompt, group or "
        "dataset; the number is rounded up.",
    )
    min_distance: float | None = Field(
        default=None,
        gt=0,
        le=2,
        description="Reject images whose embedding is nearer to that of an earlier image, `per` "
        "prompt, group or dataset: cosine distance, from 0 to 2. Needs `score.embeddings`.",
    )
    min_hash_distance: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="The same by the bits in which perceptual hashes differ. Needs `score.hashes`.",
    )
    against: tuple[Url, ...] = Field(
        default=(),
        max_length=100,
        description="Outputs of earlier runs, whose images come before all others: with "
        "`min_distance` or `min_hash_distance` `per: dataset`.",
    )
    flag: bool = Field(
        default=False,
        description="Reject nothing: name the earlier image in the columns `duplicate_of`, "
        "`duplicate_distance` and `duplicate_bits` of the metadata.",
    )
    per: Column | Annotated[tuple[Column, ...], Field(min_length=1, max_length=10)] = Field(
        default=PROMPT,
        description="The images that are compared: those of a `prompt`, of the whole `dataset`, or "
        "of prompts with the same value in a column, or in a list of columns, of the prompt table.",
    )

    @property
    def action(self) -> str:
        """The key that says what it does."""
        return next(name for name in ACTIONS if getattr(self, name) is not None)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the prompt table whose values make its groups."""
        if isinstance(self.per, tuple):
            return self.per
        return () if self.per in (PROMPT, DATASET) else (self.per,)

    @property
    def looks_across(self) -> bool:
        """Whether it compares images of different prompts, which may be in different shards."""
        return self.per != PROMPT

    def __str__(self) -> str:
        """What it does: "keep_share 0.6 per category"."""
        if self.action not in GROUPED:
            return f"{self.action} {getattr(self, self.action)}"
        per = " and ".join(self.columns) or self.per
        return f"{self.action} {getattr(self, self.action):g} per {per}"

    @model_validator(mode="after")
    def _check_action(self) -> Self:
        given = [name for name in ACTIONS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a rule has exactly one of {', '.join(ACTIONS)}, found "
                f"{' and '.join(given) or 'none'}"
            )
        if given[0] not in LIKENESS and (self.flag or self.against):
            raise ValueError(f"flag and against go with {' or '.join(LIKENESS)}, found {given[0]}")
        if self.against and self.per != DATASET:
            raise ValueError(f"against goes with per: dataset, found per: {self.per}")
        if given[0] not in GROUPED and self.per != PROMPT:
            raise ValueError(f"per goes with {' or '.join(GROUPED)}, found {given[0]}")
        if isinstance(self.per, tuple) and len(set(self.per)) < len(self.per):
            raise ValueError("per names a column twice")
        return self


LIKENESS = ("min_distance", "min_hash_distance")
"""Keys that reject near-duplicates."""

GROUPED = ("keep_best", "keep_share", *LIKENESS)
"""Keys that compare images with each other."""

ACTIONS = ("min_score", "min_scores", *GROUPED)
"""Keys of which a rule has one."""


class SelectConfig(Section):
    """Selection among scored images by rules, after the limits of `score`; runs no network.

    See [Choosing images](choosing.md).
    """

    rules: tuple[Rule, ...] = Field(
        default=(),
        max_length=100,
        description="Rules, applied in order to the images that `score.min_score`, `max_unsafe` "
        "and `keep_best` have kept, such as [{keep_best: 2}, {keep_share: 0.6, per: category}, "
        "{keep_best: 10000, per: dataset}].",
    )

    @property
    def looks_across(self) -> bool:
        """Whether what is kept of a shard depends on others."""
        return any(rule.looks_across for rule in self.rules)

    @property
    def against(self) -> tuple[str, ...]:
        """The earlier outputs that rules compare with."""
        return tuple(url for rule in self.rules for url in rule.against)

    @property
    def finds_alike(self) -> bool:
        """Whether a rule looks for near-duplicates."""
        return any(rule.action in LIKENESS for rule in self.rules)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the prompt table that groups are made of."""
        return tuple(dict.fromkeys(name for rule in self.rules for name in rule.columns))

    def identified(self) -> list[dict[str, object]]:
        """The rules as plain JSON values, without what does not change decisions.

        The URL of a table is left out: its content is part of the fingerprint.
        """
        dumped = [rule.model_dump(mode="json", exclude_none=True) for rule in self.rules]
        later = {"against": [], "flag": False}
        return [
            {
                name: True if name == "min_scores" else value
                for name, value in rule.items()
                if name not in later or value != later[name]
            }
            for rule in dumped
        ]
