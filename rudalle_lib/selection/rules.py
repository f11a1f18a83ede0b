"""The rules of `select` applied to scored images, of one shard or of all.

A decision depends on the images alone, never on how they are divided into shards or in which order
they come: images are compared best first, which means kept by hand, then by score, then by id.
Only near-duplicates are found in the order of the plan (`selection.alike`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rudalle_lib.config.selection import DATASET, GROUPED, LIKENESS, PROMPT, Rule
from rudalle_lib.schema.decisions import Alike, GroupCounts, RuleCounts
from rudalle_lib.schema.records import Reason, Reject, ScoreRecord
from rudalle_lib.selection.alike import find_alike, likeness_columns

NONE = "none"
"""How the group of prompts without a value is called."""


@dataclass(frozen=True)
class Limit:
    """The minimum score of a prompt, and the values that it has in a table such as
    "category=cat".
    """

    min_score: float
    where: str


Limits = Sequence[Mapping[str, Limit]]
"""For each rule the limits by prompt id; none unless it is `min_scores`."""


def candidates(
    rows: Sequence[ScoreRecord],
    groups: Mapping[str, Mapping[str, str]],
    limits: Limits,
    kept_by_hand: Callable[[ScoreRecord], bool],
    rules: Sequence[Rule] = (),
) -> pa.Table:
    """The images that rules choose among, one row each.

    Args:
        rows: scored images.
        groups: the value of each prompt, by column of the prompt table and prompt id.
        limits: for each rule.
        kept_by_hand: whether somebody has decided to keep an image.
        rules: decide which columns of measures are kept.
    """
    prompts = [row.prompt_id for row in rows]
    columns = {
        "image_id": pa.array([row.image_id for row in rows], pa.string()),
        "prompt_id": pa.array(prompts, pa.string()),
        "score": pa.array([row.score for row in rows], pa.float64()),
        "by_hand": pa.array([kept_by_hand(row) for row in rows], pa.bool_()),
    }
    for name, values in groups.items():
        columns[f"column.{name}"] = pa.array([values.get(one) for one in prompts], pa.string())
    columns |= likeness_columns(rows, rules)
    for number, by_prompt in enumerate(limits):
        found = [by_prompt.get(one) for one in prompts]
        scores = [None if limit is None else limit.min_score for limit in found]
        columns[f"limit.{number}"] = pa.array(scores, pa.float64())
        names = [None if limit is None else limit.where for limit in found]
        columns[f"where.{number}"] = pa.array(names, pa.string())
    return pa.table(columns)


@dataclass
class Outcome:
    """What rules decided about images.

    Attributes:
        images: what the rules chose among, as `candidates` returns it.
        rules: the rules.
        rule: the number of the rule that rejects each image, -1 if it is kept; int32 [N].
        place: its place in its group, from 1, if the rule compares images; int64 [N].
        room: how many images of its group are kept; int64 [N].
        size: how many images its group had; int64 [N].
        code: the number of its group among `labels` of the rule; int64 [N].
        labels: of the groups, by rule.
        counts: of every rule and group.
        alike: by row, the earlier image that the image is a near-duplicate of.
    """

    images: pa.Table
    rules: tuple[Rule, ...]
    rule: NDArray[np.int32]
    place: NDArray[np.int64]
    room: NDArray[np.int64]
    size: NDArray[np.int64]
    code: NDArray[np.int64]
    labels: dict[int, list[str]] = field(default_factory=dict)
    counts: list[RuleCounts] = field(default_factory=list)
    alike: dict[int, Alike] = field(default_factory=dict)

    def flagged(self, start: int = 0, stop: int | None = None) -> dict[str, Alike]:
        """The kept images that are like an earlier one, by image id, of some rows or of all."""
        stop = self.images.num_rows if stop is None else stop
        names = self.images.column("image_id").slice(start, stop - start).to_pylist()
        rows = (row for row in sorted(self.alike) if start <= row < stop and self.rule[row] < 0)
        return {names[row - start]: self.alike[row] for row in rows}

    def rejects(self, start: int = 0, stop: int | None = None) -> dict[str, Reject]:
        """Why images are rejected, by image id, of some rows or of all."""
        part = self.images.slice(start, (self.images.num_rows if stop is None else stop) - start)
        names = part.column("image_id").to_pylist()
        rejected = np.flatnonzero(self.rule[start : start + part.num_rows] >= 0)
        return {names[row]: self._reject(start + int(row)) for row in rejected}

    def rejected_by(self, start: int = 0, stop: int | None = None) -> dict[str, int]:
        """The number of the rule that rejects an image, by image id, of some rows or of all."""
        part = self.images.slice(start, (self.images.num_rows if stop is None else stop) - start)
        names, rules = part.column("image_id").to_pylist(), self.rule[start:stop].tolist()
        return {name: rule for name, rule in zip(names, rules, strict=True) if rule >= 0}

    def _reject(self, row: int) -> Reject:
        number = int(self.rule[row])
        rule, score = self.rules[number], self.images.column("score")[row].as_py()
        where = f"select.rules.{number}, {rule}"
        if rule.action == "min_score":
            return Reject("below_threshold", f"{where}: score {score:.3f} is below it")
        if rule.action == "min_scores":
            limit = self.images.column(f"limit.{number}")[row].as_py()
            label = self.images.column(f"where.{number}")[row].as_py()
            what = f"score {score:.3f} is below min_score {limit:.3f} of {label}"
            return Reject("below_threshold", f"{where}: {what}")
        if rule.action in LIKENESS:
            near = self.alike[row]
            apart = f"{near.bits} bits" if near.distance is None else f"{near.distance:.4f}"
            return Reject("near_duplicate", f"{where}: {apart} from {near.image_id}")
        label = self.labels[number][int(self.code[row])]
        what = f"place {self.place[row]:,} of {self.size[row]:,}{label and f' in {label}'}"
        kept = f"{self.room[row]:,} are kept"
        return Reject(reason_of(rule), f"{where}: {what} with score {score:.3f}; {kept}")


def reason_of(rule: Rule) -> Reason:
    """The reason of images that a rule rejects."""
    if rule.action in ("min_score", "min_scores"):
        return "below_threshold"
    if rule.action == "keep_share":
        return "not_in_best_share"
    if rule.per == PROMPT:
        return "not_in_best_k"
    return "over_budget" if rule.per == DATASET else "group_full"


def apply_rules(rules: Sequence[Rule], images: pa.Table) -> Outcome:
    """Apply rules in order, each to what the ones before it have left.

    Images that were kept by hand are never rejected, and take the first places of their groups.

    Args:
        rules: the rules.
        images: as `candidates` returns them, of all shards if a rule looks across prompts.
    """
    count = images.num_rows
    place, room, size, code = (np.zeros(count, np.int64) for _ in range(4))
    kept = np.full(count, -1, np.int32)
    outcome = Outcome(images, tuple(rules), kept, place, room, size, code)
    order = _best_first(images)
    scores = images.column("score").to_numpy()
    by_hand = images.column("by_hand").to_numpy()
    for number, rule in enumerate(rules):
        rows = order[outcome.rule[order] < 0]
        codes, labels = _groups(images, rule, rows)
        if rule.action in ("min_score", "min_scores"):
            least = rule.min_score
            if least is None:
                least = images.column(f"limit.{number}").to_numpy()[rows]  # NaN: no limit
            out = scores[rows] < least
        elif rule.action in LIKENESS:
            found = find_alike(rule, images, rows, codes)
            outcome.alike = found | outcome.alike if rule.flag else outcome.alike | found
            near = np.isin(rows, np.fromiter(found, np.int64, len(found)))
            out = near & (not rule.flag)
        else:
            sizes = np.bincount(codes, minlength=len(labels))
            room = _room(rule, sizes)
            places = _places(codes)
            out = places > room[codes]
            outcome.place[rows], outcome.room[rows] = places, room[codes]
            outcome.size[rows], outcome.code[rows] = sizes[codes], codes
            outcome.labels[number] = labels
        out &= ~by_hand[rows]
        outcome.rule[rows[out]] = number
        outcome.counts.append(_count(rule, codes, labels, out, scores[rows]))
    return outcome


def _best_first(images: pa.Table) -> NDArray[np.int64]:
    keys = [("by_hand", "descending"), ("score", "descending"), ("image_id", "ascending")]
    return np.asarray(pc.sort_indices(images, sort_keys=keys)).astype(np.int64)


def _groups(
    images: pa.Table, rule: Rule, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], list[str]]:
    """The group of each row as a number, and the labels of the groups; one of all is unnamed."""
    if rule.per == DATASET or rule.action not in GROUPED:
        return np.zeros(len(rows), np.int64), [""]
    if rule.per == PROMPT:
        keys = images.column("prompt_id")
    else:
        values = [
            pc.binary_join_element_wise(
                f"{name}=", pc.fill_null(images.column(f"column.{name}"), NONE), ""
            )
            for name in rule.columns
        ]
        keys = pc.binary_join_element_wise(*values, ", ")
    encoded = keys.take(pa.array(rows)).combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return np.asarray(encoded.indices).astype(np.int64), encoded.dictionary.to_pylist()


def _places(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of each entry among those with the same code, from 1, in their order."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(codes) else order
    lengths = np.diff(np.r_[starts, len(codes)])
    places = np.empty(len(codes), np.int64)
    places[order] = np.arange(len(codes)) - np.repeat(starts, lengths) + 1
    return places


def _room(rule: Rule, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many images of each group are kept."""
    if rule.keep_best is not None:
        return np.minimum(sizes, rule.keep_best)
    share = Fraction(str(rule.keep_share))  # 7% of 100 are 7, not 8
    return -(-sizes * share.numerator // share.denominator)


def _count(
    rule: Rule,
    codes: NDArray[np.int64],
    labels: Sequence[str],
    out: NDArray[np.bool_],
    scores: NDArray[np.float64],
) -> RuleCounts:
    per_group = rule.columns or rule.per == DATASET
    groups = []
    if per_group and rule.action in ("keep_best", "keep_share"):
        before = np.bincount(codes, minlength=len(labels))
        kept = np.bincount(codes[~out], minlength=len(labels))
        lowest = np.full(len(labels), np.inf)
        np.minimum.at(lowest, codes[~out], scores[~out])
        groups = [
            GroupCounts(label, int(before[code]), int(kept[code]), _finite(lowest[code]))
            for label, code in sorted((label, code) for code, label in enumerate(labels))
            if before[code]
        ]
    return RuleCounts(str(rule), len(codes), int((~out).sum()), tuple(groups))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
