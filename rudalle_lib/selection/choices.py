"""What decides which images of a shard are kept, beside the settings of `score`.

Decisions by hand and tables of minimum scores are found for each shard once per run. They are part
of the fingerprint of the shards that they are about, and of no others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.sections import ScoreConfig
from rudalle_lib.config.selection import Rule
from rudalle_lib.dataset.curation import read_curation
from rudalle_lib.digests import digest_of
from rudalle_lib.images.selection import find_rejects, is_kept_by_hand
from rudalle_lib.prompts.plan import read_extras
from rudalle_lib.schema.decisions import Alike, ByHand, RuleCounts, SelectionRecord
from rudalle_lib.schema.records import Reject, ScoreRecord, ShardSpec
from rudalle_lib.selection.alike import check_earlier
from rudalle_lib.selection.by_hand import find_shards
from rudalle_lib.selection.groups import MinScores, check_columns, read_min_scores
from rudalle_lib.selection.rules import Limit, Outcome, apply_rules, candidates
from rudalle_lib.storage.storage import Storage


@dataclass(frozen=True)
class Choice:
    """What decides which images of a shard are kept, beside the settings of `score`.

    Attributes:
        by_hand: decisions of people, by image id.
        rules: those of `select`, unless they look across shards.
        limits: for each rule the minimum scores of prompts, by prompt id.
        across: what rules that look across shards reject, by image id: the number of the rule; None
            if there are no such rules, or nothing is decided yet.
        reasons: the same with the reason.
        alike: what rules that look across shards flag as near-duplicates, by image id.
    """

    by_hand: Mapping[str, ByHand] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    limits: tuple[Mapping[str, Limit], ...] = ()
    across: Mapping[str, int] | None = None
    reasons: Mapping[str, Reject] = field(default_factory=dict)
    alike: Mapping[str, Alike] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """What the fingerprint of the published shard holds of it; empty if there is nothing.

        The numbers in `reasons` are left out: a shard is not published again because another image
        has moved them.
        """
        parts: dict[str, object] = {}
        if self.by_hand:
            parts["by_hand"] = {name: list(one) for name, one in self.by_hand.items()}
        if any(self.limits):
            parts["limits"] = [
                {name: [limit.min_score, limit.where] for name, limit in one.items()}
                for one in self.limits
            ]
        if self.across is not None:
            parts["across"] = dict(self.across)
        if self.alike:
            parts["alike"] = {name: list(near) for name, near in self.alike.items()}
        return digest_of(parts) if parts else ""

    def find_rejects(
        self, scores: Sequence[ScoreRecord], contents: Mapping[str, str], selection: ScoreConfig
    ) -> dict[str, Reject]:
        """Why images of the shard are rejected, by image id; those that are kept are absent.

        Args:
            scores: of all images of the shard.
            contents: what each shows (`images.selection.contents_of`).
            selection: the limits of `score`.
        """
        rejects = find_rejects(scores, selection, contents, self.by_hand)
        if self.rules:
            left = [row for row in scores if row.image_id not in rejects]
            rejects |= self._outcome(left).rejects()
        return rejects | dict(self.reasons)

    def find_alike(
        self, scores: Sequence[ScoreRecord], contents: Mapping[str, str], selection: ScoreConfig
    ) -> dict[str, Alike]:
        """The images that rules flag as near-duplicates, by image id; see `find_rejects`."""
        if not any(rule.flag for rule in self.rules):
            return dict(self.alike)
        rejects = find_rejects(scores, selection, contents, self.by_hand)
        return self._outcome([row for row in scores if row.image_id not in rejects]).flagged()

    def _outcome(self, left: Sequence[ScoreRecord]) -> Outcome:
        images = candidates(left, {}, self.limits, self.is_kept_by_hand, self.rules)
        return apply_rules(self.rules, images)

    def is_kept_by_hand(self, row: ScoreRecord) -> bool:
        """Whether somebody has decided to keep an image, and it has a score."""
        return is_kept_by_hand(row, self.by_hand)


NO_CHOICE = Choice()
"""The choice of a shard about which nothing was decided."""


@dataclass(frozen=True)
class Across:
    """What rules that look across shards decided: outcome, and the rows of each shard in it."""

    outcome: Outcome
    spans: Mapping[int, tuple[int, int]]


@dataclass(frozen=True)
class Choices:
    """The choice of every shard of a run.

    Attributes:
        by_shard: decisions that are about single shards.
        usual: the choice of all other shards.
        curation: SHA-256 of the `curation.csv` that was read; empty if there is none.
        across: what rules that look across shards decided; None if there are none, or before it.
    """

    by_shard: Mapping[int, Choice] = field(default_factory=dict)
    usual: Choice = NO_CHOICE
    curation: str = ""
    across: Across | None = None

    def of(self, index: int, with_reasons: bool = True) -> Choice:
        """The choice of a shard."""
        own = self.by_shard.get(index, self.usual)
        if self.across is None or index not in self.across.spans:
            return own
        outcome, (start, stop) = self.across.outcome, self.across.spans[index]
        reasons = outcome.rejects(start, stop) if with_reasons else {}
        across = outcome.rejected_by(start, stop)
        alike = outcome.flagged(start, stop)
        return Choice(own.by_hand, (), own.limits, across, reasons, alike)

    def digest(self, index: int) -> str:
        """The digest of a shard's choice."""
        return self.of(index, with_reasons=False).digest

    def record(self, shards: Sequence[ShardSpec]) -> SelectionRecord:
        """What `run.json` holds of it.

        Args:
            shards: all planned shards.
        """
        digests = {shard.index: self.digest(shard.index) for shard in shards}
        given = {index: digest for index, digest in digests.items() if digest}
        counts: tuple[RuleCounts, ...] = ()
        if self.across is not None:
            counts = tuple(self.across.outcome.counts)
        digest = digest_of({str(index): one for index, one in given.items()}) if given else ""
        return SelectionRecord(self.curation, digest, counts)


NO_CHOICES = Choices()
"""The choices of a run in which nothing was decided."""


def load_choices(config: RunConfig, storage: Storage, shards: Sequence[ShardSpec]) -> Choices:
    """Read what was decided about the images of planned shards, and check the rules' columns.

    Args:
        config: the run.
        storage: its output.
        shards: whose plan files exist.

    Raises:
        ConfigError: a decision is about an image that the run does not have, or a rule names a
            column that no prompt has, or its table cannot be used.
        StorageError: a table cannot be read.
    """
    check_earlier(config)
    curation, rules = read_curation(storage), config.select.rules
    tables = [
        None if rule.min_scores is None else read_min_scores(rule.min_scores) for rule in rules
    ]
    wanted = {
        column: f"select.rules.{number}.per"
        for number, rule in enumerate(rules)
        for column in rule.columns
    }
    wanted |= {column: table.name for table in tables if table for column in table.columns}
    check_columns(wanted, storage, shards)
    by_hand = find_shards(curation, storage, shards, config.generate)
    own_rules = () if config.select.looks_across else rules
    by_shard: dict[int, Choice] = {}
    for shard in shards:
        limits = _limits(tables, storage, shard)
        if limits or shard.index in by_hand:
            by_shard[shard.index] = Choice(by_hand.get(shard.index, {}), own_rules, limits)
    return Choices(by_shard, Choice(rules=own_rules), curation.digest)


KEEPS_ALL = Rule(min_score=-1)
"""A rule that rejects nothing, in place of another, so that the others keep their numbers."""


def choice_of_one(config: RunConfig, prompt_id: str) -> Choice:
    """What decides about a prompt that is in no table: the rules that look at its images alone.

    It has no columns, so of a table of minimum scores the rows that match any value count.

    Raises:
        ConfigError: a table cannot be used.
        StorageError: a table cannot be read.
    """
    rules = tuple(KEEPS_ALL if rule.looks_across else rule for rule in config.select.rules)
    prompt = pa.table({"prompt_id": [prompt_id]})
    limits = tuple(
        {} if rule.min_scores is None else read_min_scores(rule.min_scores).limits(prompt)
        for rule in rules
    )
    return Choice(rules=rules, limits=limits)


def _limits(
    tables: Sequence[MinScores | None], storage: Storage, shard: ShardSpec
) -> tuple[Mapping[str, Limit], ...]:
    if not any(tables):
        return ()
    extras = read_extras(storage, shard)
    return tuple({} if table is None else table.limits(extras) for table in tables)
