"""Rules against a naive reference, and independent of the order in which images come."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rudalle_lib.config.selection import Rule
from rudalle_lib.schema.records import ScoreRecord
from rudalle_lib.selection.rules import Limit, apply_rules, candidates

COLUMNS = ("category", "style")


@dataclass(frozen=True)
class Image:
    prompt: str
    replica: int
    score: float
    category: str | None
    style: str | None
    limit: float | None
    by_hand: bool

    @property
    def name(self) -> str:
        return f"{self.prompt}-{self.replica:03d}"

    def key(self, rule: Rule) -> object:
        if rule.per == "dataset":
            return ""
        if rule.per == "prompt":
            return self.prompt
        return tuple(getattr(self, name) for name in rule.columns)


def table_of(images: list[Image], rules: list[Rule]) -> pa.Table:
    groups = {
        name: {one.prompt: str(getattr(one, name)) for one in images if getattr(one, name)}
        for name in COLUMNS
    }
    limit = {one.prompt: Limit(one.limit, "a=b") for one in images if one.limit is not None}
    limits = [limit if rule.min_scores else {} for rule in rules]
    kept = {one.name for one in images if one.by_hand}
    rows = [ScoreRecord(one.name, one.prompt, one.score, 1) for one in images]
    return candidates(rows, groups, limits, lambda row: row.image_id in kept)


def naive(rules: list[Rule], images: list[Image]) -> dict[str, int]:
    """The number of the rule that rejects each image: what the documentation says, literally."""
    rejected: dict[str, int] = {}
    for number, rule in enumerate(rules):
        left = [one for one in images if one.name not in rejected]
        groups: defaultdict[object, list[Image]] = defaultdict(list)
        for one in left:
            groups[one.key(rule)].append(one)
        for group in groups.values():
            group.sort(key=lambda one: (not one.by_hand, -one.score, one.name))
            if rule.keep_best is not None:
                out = group[rule.keep_best :]
            elif rule.keep_share is not None:
                out = group[math.ceil(Fraction(str(rule.keep_share)) * len(group)) :]
            elif rule.min_score is not None:
                out = [one for one in group if one.score < rule.min_score]
            else:
                out = [one for one in group if one.limit is not None and one.score < one.limit]
            rejected |= {one.name: number for one in out if not one.by_hand}
    return rejected


SCORES = st.sampled_from([-0.5, 0.0, 0.25, 0.5]) | st.floats(-1, 1, width=32)
PER = st.sampled_from(["prompt", "dataset", "category", ("category", "style")])
RULES = st.lists(
    st.builds(Rule, min_score=st.floats(-1, 1))
    | st.just(Rule(min_scores="x.csv"))
    | st.builds(Rule, keep_best=st.integers(1, 5), per=PER)
    | st.builds(Rule, keep_share=st.sampled_from([0.07, 0.1, 0.5, 0.6, 1.0]), per=PER),
    min_size=1,
    max_size=4,
)


@st.composite
def collections(draw: st.DrawFn) -> list[Image]:
    images = []
    for prompt in draw(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8)):
        own = (
            draw(st.sampled_from(["cat", "dog", None])),
            draw(st.sampled_from(["ink", None])),
            draw(st.sampled_from([None, 0.25])),
        )
        count = draw(st.integers(1, 6))
        images += [
            Image(prompt, n, draw(SCORES), *own, draw(st.integers(0, 7)) == 0) for n in range(count)
        ]
    return images


@settings(deadline=None)
@given(RULES, collections(), st.randoms(use_true_random=False))
def test_decisions_are_those_of_the_reference_in_any_order(
    rules: list[Rule], images: list[Image], random: object
) -> None:
    expected = naive(rules, images)
    shuffled = list(images)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for given_images in (images, shuffled):
        outcome = apply_rules(rules, table_of(given_images, rules))
        assert outcome.rejected_by() == expected
        assert outcome.rejects().keys() == expected.keys()
    first, second = (apply_rules(rules, table_of(one, rules)) for one in (images, shuffled))
    assert first.rejects() == second.rejects() and first.counts == second.counts
    left = len(images)
    for number, counts in enumerate(first.counts):
        assert counts.before == left
        left -= sum(rule == number for rule in expected.values())
        assert counts.kept == left
        assert sum(one.before for one in counts.groups) in (0, counts.before)


def scored(*scores: float) -> list[Image]:
    return [Image("p", n, score, "cat", None, 0.25, False) for n, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("rule", "reason", "detail"),
    [
        ({"min_score": 0.3}, "below_threshold", "min_score 0.3: score 0.100 is below it"),
        (
            {"min_scores": "x.csv"},
            "below_threshold",
            "min_scores x.csv: score 0.100 is below min_score 0.250 of a=b",
        ),
        (
            {"keep_best": 2},
            "not_in_best_k",
            "keep_best 2 per prompt: place 3 of 3 in p with score 0.100; 2 are kept",
        ),
        (
            {"keep_best": 2, "per": "category"},
            "group_full",
            "keep_best 2 per category: place 3 of 3 in category=cat with score 0.100; 2 are kept",
        ),
        (
            {"keep_best": 2, "per": "dataset"},
            "over_budget",
            "keep_best 2 per dataset: place 3 of 3 with score 0.100; 2 are kept",
        ),
        (
            {"keep_share": 0.6, "per": ["category", "style"]},
            "not_in_best_share",
            "keep_share 0.6 per category and style: place 3 of 3 in category=cat, style=none with "
            "score 0.100; 2 are kept",
        ),
    ],
)
def test_a_reject_names_the_rule_and_the_numbers(
    rule: dict[str, object], reason: str, detail: str
) -> None:
    rules, images = [Rule.model_validate(rule)], scored(0.5, 0.4, 0.1)
    (found,) = apply_rules(rules, table_of(images, rules)).rejects().values()
    assert found == (reason, f"select.rules.0, {detail}")


def test_a_group_never_vanishes_and_a_share_is_exact() -> None:
    for share, count, kept in ((0.01, 3, 1), (0.07, 100, 7), (0.1, 30, 3), (1.0, 5, 5)):
        rules = [Rule(keep_share=share, per="category")]
        images = scored(*(number / 1000 for number in range(count)))
        (counts,) = apply_rules(rules, table_of(images, rules)).counts
        assert (counts.before, counts.kept, len(counts.groups)) == (count, kept, 1)


def test_without_images_every_rule_counts_none() -> None:
    rules = [Rule(keep_best=1), Rule(keep_share=0.5, per="category"), Rule(min_score=0.1)]
    outcome = apply_rules(rules, table_of([], rules))
    assert outcome.rejects() == {}
    assert [(one.before, one.kept, one.groups) for one in outcome.counts] == [(0, 0, ())] * 3
