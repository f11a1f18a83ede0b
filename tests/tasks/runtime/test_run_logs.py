"""The line that Prefect's pages log about a completed task."""

from __future__ import annotations

import logging
from datetime import datetime

import pytest

from rudalle_lib.prompts.plan import Plan
from rudalle_lib.schema.records import DataFile, ShardManifest, ShardSpec, StageArtifact, reject
from rudalle_lib.schema.table_rows import TableRow
from tasks.runtime import run_logs
from tasks.runtime.run_logs import (
    LOGGER,
    REJECTS_SHOWN,
    describe_result,
    log_rejects,
    replace_lines,
)

METADATA = DataFile("data/metadata/00000.parquet", 1, "")


def test_a_stage_says_how_much_it_has_made_and_how_fast() -> None:
    fast = StageArtifact("u", "f", 192, 4.0)
    assert describe_result("decode", fast) == "192 candidates in 4.0 s, 48.0 per second"
    waited = StageArtifact("u", "f", 1, 0.0, waited=70.0)
    expected = "1 prompt in 0.0 s, after waiting 1 min 10 s"
    assert describe_result("translate", waited) == expected


def test_what_an_earlier_run_has_made_has_no_speed() -> None:
    made = StageArtifact("u", "f", 192, 4.0, devices=1, until="2026-01-01T00:00:00+00:00")
    end = datetime.fromisoformat(made.until).timestamp()
    assert describe_result("decode", made, end + 1) == "192 candidates of an earlier run"
    assert describe_result("decode", made, end - 4) == "192 candidates in 4.0 s, 48.0 per second"


def test_a_published_shard_says_what_was_kept_and_why_the_rest_was_not() -> None:
    manifest = ShardManifest(
        0, "f", "c", 2, 8, 3, {"not_in_best_k": 4, "unsafe": 1}, 10, METADATA, None, {}, ""
    )
    assert describe_result("publish", manifest) == (
        "2 prompts, 3 of 8 images published, 5 rejected (4 not_in_best_k, 1 unsafe)"
    )


def test_a_plan_says_what_is_new_and_other_results_nothing() -> None:
    plan = Plan((ShardSpec(0, "plan/00000.parquet", 2),), (0,), 2, 8, "t.csv", 2, {}, 0)
    assert describe_result("plan", plan) == "2 prompts in 1 shard, 2 new"
    assert describe_result("plan", None) == ""


def test_rejected_prompts_get_a_line_each_with_their_row(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rejects = [
        reject(
            "too_long", "too long", stage="generate", prompt_id=f"p{n}", row=TableRow("t.csv", n)
        )
        for n in range(1, REJECTS_SHOWN + 3)
    ]
    log_rejects(rejects)  # outside of a run there is no log
    assert caplog.messages == []
    monkeypatch.setattr(run_logs, "get_run_logger", lambda: logging.getLogger("run"))
    log_rejects(rejects)
    assert caplog.messages[0] == "p1: row 1 of t.csv: too long (too_long)"
    assert caplog.messages[REJECTS_SHOWN:] == [
        "... and 2 rejected prompts more; all are in rejects/"
    ]


def test_lines_of_prefect_are_replaced_once() -> None:
    replace_lines()
    replace_lines()
    logger = logging.getLogger(LOGGER)

    def passes(text: str) -> bool:
        record = logger.makeRecord(LOGGER, logging.INFO, "", 0, text, (), None)
        return bool(logger.filter(record))

    assert not passes("Finished in state Completed()")
    assert not passes("Running hook 'log_result' in response to entering state 'Completed'")
    assert passes("Finished in state Failed('no')") and passes("decode 00000: 8 candidates")
    assert len({type(one) for one in logger.filters}) == len(logger.filters)
