"""What decides about a shard, and which of it is part of the fingerprint."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.selection import Rule
from rudalle_lib.prompts.plan import plan_run
from rudalle_lib.schema.decisions import ByHand
from rudalle_lib.schema.records import Reject, ScoreRecord, ShardSpec
from rudalle_lib.selection.choices import NO_CHOICES, Choice, Choices, load_choices
from rudalle_lib.selection.rules import Limit
from rudalle_lib.storage.storage import Storage

ROWS = [ScoreRecord(f"a-{n:03d}", "a", score, n + 1) for n, score in enumerate((0.9, 0.8, 0.7))]
SHARDS = [ShardSpec(index, "", 1) for index in range(3)]


def test_nothing_decided_is_no_part_of_a_fingerprint() -> None:
    assert Choice().digest == NO_CHOICES.digest(7) == ""
    assert NO_CHOICES.record(SHARDS).digest == ""
    assert Choice(rules=(Rule(keep_best=1),)).digest == ""  # the settings hold it


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Choice(), Choice({"a-000": ByHand("keep")})),
        (Choice({"a-000": ByHand("keep")}), Choice({"a-000": ByHand("reject")})),
        (Choice({"a-000": ByHand("reject")}), Choice({"a-000": ByHand("reject", "two")})),
        (Choice(limits=({"a": Limit(0.1, "x")},)), Choice(limits=({"a": Limit(0.2, "x")},))),
        (Choice(limits=({"a": Limit(0.1, "x")}, {})), Choice(limits=({}, {"a": Limit(0.1, "x")}))),
        (Choice(), Choice(across={})),
        (Choice(across={"a-000": 0}), Choice(across={"a-000": 1})),
    ],
)
def test_every_decision_is_part_of_the_fingerprint(first: Choice, second: Choice) -> None:
    assert first.digest != second.digest
    for choice in (first, second):
        assert pickle.loads(pickle.dumps(choice)) == choice  # workers get it


def test_numbers_in_reasons_are_no_part_of_the_fingerprint() -> None:
    across = {"a-000": 0}
    reasons = [{"a-000": Reject("over_budget", f"place {n} of 9")} for n in (8, 9)]
    assert len({Choice(across=across, reasons=one).digest for one in reasons}) == 1


def test_rules_within_a_prompt_come_after_the_limits_and_decisions_by_hand() -> None:
    limits = RunConfig.parse("score: {min_score: 0.75}").score
    choice = Choice({"a-002": ByHand("keep")}, (Rule(keep_best=2),), ({},))
    assert choice.find_rejects(ROWS, {}, limits) == {
        "a-001": Reject(
            "not_in_best_k",
            "select.rules.0, keep_best 2 per prompt: place 3 of 3 in a with score 0.800; 2 are "
            "kept",
        )
    }


def test_a_record_changes_with_any_shard() -> None:
    choices = [
        Choices({index: Choice({"a-000": by_hand})})
        for index, by_hand in (
            (0, ByHand("keep")),
            (1, ByHand("keep")),
            (0, ByHand("reject")),
        )
    ]
    digests = {one.record(SHARDS).digest for one in choices}
    assert len(digests) == 3 and "" not in digests


def test_choices_are_loaded_for_the_shards_that_they_are_about(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,prompt_id,kind\nx,a,cat\ny,b,dog\n", encoding="utf-8")
    (tmp_path / "t.csv").write_text("kind,min_score\ndog,0.5\n", encoding="utf-8")
    config = RunConfig.model_validate({
        "output": str(tmp_path / "out"),
        "prompts": {"uri": str(tmp_path / "p.csv"), "shard_size": 1},
        "select": {"rules": [{"keep_best": 1}, {"min_scores": str(tmp_path / "t.csv")}]},
    })  # fmt: skip
    storage = Storage(config.output)
    shards = plan_run(config, storage).shards
    storage.write_bytes("curation.csv", b"image_id,decision\na-001,keep\n")
    choices = load_choices(config, storage, shards)
    assert dict(choices.of(0).by_hand) == {"a-001": ByHand("keep")}
    assert not choices.of(1).by_hand
    assert choices.of(0).limits == ({}, {}) and choices.of(1).limits == (
        {}, {"b": Limit(0.5, "kind=dog")},
    )  # fmt: skip
    assert choices.of(0).rules == choices.of(1).rules == config.select.rules
    assert len(choices.curation) == 64
