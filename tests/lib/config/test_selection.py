"""The rules of `select`: one action each, and clear errors for everything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.selection import Rule
from rudalle_lib.errors import ConfigError


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("[{}]", "select.rules.0: a rule has exactly one of min_score, min_scores, keep_best, "
         "keep_share, min_distance, min_hash_distance, found none."),
        ("[{min_score: 0.1}, {keep_best: 2, keep_share: 0.5}]",
         "select.rules.1: a rule has exactly one of .*, found keep_best and keep_share."),
        ("[{min_score: 0.1, per: category}]",
         "select.rules.0: per goes with keep_best or keep_share or min_distance or "
         "min_hash_distance, found min_score."),
        ("[{keep_best: 2, per: [a, a]}]", "select.rules.0: per names a column twice."),
        ("[{keep_bets: 2}]", r"Unknown key select.rules.0.keep_bets \(did you mean keep_best\?\); "
         "the keys in select.rules.0 are min_score, min_scores, keep_best, keep_share, "
         "min_distance, min_hash_distance, against, flag, per."),
        ("[{keep_best: 0}]", "select.rules.0.keep_best: expected greater than or equal to 1; "),
        ("[{keep_share: 60}]", "select.rules.0.keep_share: expected less than or equal to 1; "),
        ("[keep_best]", "select.rules.0 is a section with the keys min_score, .*found 'keep_best'"),
        ("{keep_best: 2}", "select.rules: expected a valid tuple"),
    ],
)  # fmt: skip
def test_what_is_no_rule_is_an_error_with_its_number(rules: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^config: {message}"):
        RunConfig.parse(f"select: {{rules: {rules}}}")


def test_rules_say_what_they_do_and_whether_they_look_across_shards() -> None:
    rules = RunConfig.parse(
        "select: {rules: [{min_score: 0.2}, {keep_best: 2}, {keep_share: 0.6, per: [a, b]}, "
        "{keep_best: 9, per: dataset}, {min_scores: x.csv}]}"
    ).select
    assert [str(rule) for rule in rules.rules] == [
        "min_score 0.2", "keep_best 2 per prompt", "keep_share 0.6 per a and b",
        "keep_best 9 per dataset", "min_scores x.csv",
    ]  # fmt: skip
    assert [rule.looks_across for rule in rules.rules] == [False, False, True, True, False]
    assert rules.columns == ("a", "b")


def test_rules_are_set_on_the_command_line_and_read_back_from_a_manifest() -> None:
    config = RunConfig.parse("", ["select.rules=[{keep_share: 0.6, per: category}]"])
    assert config.select.rules == (Rule(keep_share=0.6, per="category"),)
    assert RunConfig.model_validate(config.public_dict()) == config


def test_a_configuration_without_rules_has_the_digest_that_it_had() -> None:
    config = RunConfig()
    assert "select" not in config.digested()
    assert RunConfig.parse("select: {rules: []}").digest() == config.digest()
    assert RunConfig.parse("select: {rules: [{keep_best: 1}]}").digest() != config.digest()


def test_where_a_table_is_does_not_change_what_is_published(tmp_path: Path) -> None:
    first, second = (
        RunConfig.parse(f"select: {{rules: [{{min_scores: {tmp_path / name}}}]}}").select
        for name in ("a.csv", "b.csv")
    )
    assert first.identified() == second.identified() == [{"min_scores": True, "per": "prompt"}]
