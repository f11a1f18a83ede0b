"""Rules that compare images of several shards, decided when all of them are scored.

Shards are read one by one in any order; what is kept in memory is a few columns of the images that
the limits of `score` leave. The decision is that of one shard with all prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa

from rudalle_lib.config.run import RunConfig
from rudalle_lib.errors import StorageError, TransientError
from rudalle_lib.images.selection import contents_in, find_rejects
from rudalle_lib.prompts.plan import read_extras
from rudalle_lib.schema.arrow import from_table
from rudalle_lib.schema.records import (
    ScoreRecord,
    ShardSpec,
    StageArtifact,
    TranslationRecord,
)
from rudalle_lib.selection.choices import Across, Choices
from rudalle_lib.selection.groups import group_values
from rudalle_lib.selection.rules import apply_rules, candidates
from rudalle_lib.storage.storage import Storage
from rudalle_lib.text.blocked_words import find_blocked_word

READERS = 8
"""Shards that are read concurrently."""


@dataclass(frozen=True)
class Scored:
    """A shard whose candidates are drawn and scored, with the artifacts that selection reads."""

    shard: ShardSpec
    translated: StageArtifact
    generated: StageArtifact
    scored: StageArtifact


@dataclass(frozen=True)
class Candidates:
    """What the limits of `score` leave of a shard.

    Attributes:
        images: as `selection.rules.candidates` returns it.
        scored: number of images before.
        rejected: how many the limits rejected, by reason.
    """

    images: pa.Table
    scored: int
    rejected: Mapping[str, int]


class Selector:
    """Reads the scores of shards, and decides over all of them."""

    def __init__(self, config: RunConfig, storage: Storage, choices: Choices) -> None:
        """Start with no shard.

        Args:
            config: the run.
            storage: its output.
            choices: what is decided about single shards.
        """
        self._config, self._storage, self._choices = config, storage, choices
        self._read: dict[int, Candidates] = {}

    def read(self, shards: Iterable[Scored]) -> list[int]:
        """Read shards that are scored.

        Returns:
            The indices of those whose artifacts are missing or damaged.
        """
        wanted = list(shards)
        with ThreadPoolExecutor(READERS) as pool:
            found = dict(zip(wanted, pool.map(self._candidates, wanted), strict=True))
        self._read |= {one.shard.index: got for one, got in found.items() if got is not None}
        return [one.shard.index for one, got in found.items() if got is None]

    @property
    def indices(self) -> frozenset[int]:
        """The shards that were read."""
        return frozenset(self._read)

    @property
    def scored(self) -> int:
        """How many images were read."""
        return sum(one.scored for one in self._read.values())

    @property
    def rejected(self) -> Mapping[str, int]:
        """How many images the limits of `score` and decisions by hand reject, by reason."""
        return sum((Counter(one.rejected) for one in self._read.values()), Counter())

    def decide(self) -> Choices:
        """The choices of all shards that were read."""
        images, spans, start = [], {}, 0
        for index, one in sorted(self._read.items()):
            spans[index] = (start, start + one.images.num_rows)
            start += one.images.num_rows
            images.append(one.images)
        if not images:
            return self._choices
        outcome = apply_rules(self._config.select.rules, pa.concat_tables(images))
        return replace(self._choices, across=Across(outcome, spans))

    def _candidates(self, one: Scored) -> Candidates | None:
        storage, choice = self._storage, self._choices.of(one.shard.index)
        try:
            excluded = self._excluded(one)
            scored = from_table(_table(storage, one.scored), ScoreRecord)
            rows = [row for row in scored if row.prompt_id not in excluded]
            contents = contents_in(_table(storage, one.generated))
        except TransientError:
            raise
        except StorageError:
            return None
        rejects = find_rejects(rows, self._config.score, contents, choice.by_hand)
        left = [row for row in rows if row.image_id not in rejects]
        columns = self._config.select.columns
        groups = group_values(read_extras(storage, one.shard), columns) if columns else {}
        rules = self._config.select.rules
        images = candidates(left, groups, choice.limits, choice.is_kept_by_hand, rules)
        return Candidates(images, len(rows), Counter(why.reason for why in rejects.values()))

    def _excluded(self, one: Scored) -> set[str]:
        """Prompts that are never published, so their images take no places."""
        words = self._config.publish.blocked_words
        if not words:
            return set()
        return {
            row.prompt_id
            for row in from_table(_table(self._storage, one.translated), TranslationRecord)
            if find_blocked_word(words, row.text, row.text_ru)
        }


def _table(storage: Storage, artifact: StageArtifact) -> pa.Table:
    return storage.read_table(storage.relative(artifact.uri))
