"""`top`: many runs in one table."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from flows.cli import app
from flows.cli.top import failures, looks_table
from rudalle_lib.checks.watch import Look, Worker
from rudalle_lib.schema.records import RunTotals, RunUsage

DATASET = Path(__file__).resolve().parents[2] / "data/before_rooms/dataset"

LOOKS = [
    Look(
        "s3://bucket/a", "running", "first", holder="me@host, process 1", since=0.0, planned=40,
        totals=RunTotals(shards=12, kept=1_234, rejected={"not_in_best_k": 9, "decode_error": 2}),
        usage=RunUsage(60.0, 3.14, 1, 0.07), seconds_left=125.0,
    ),
    Look("s3://bucket/b", "unfinished", "second", planned=3, totals=RunTotals(shards=2, kept=5)),
    Look("s3://bucket/c", "stalled", "third", holder="you@host, process 2", planned=3),
    Look("s3://bucket/d", "unreadable", "", "There is no run in s3://bucket/d"),
]  # fmt: skip


def lines_of(width: int, looks: Sequence[Look] = LOOKS) -> list[str]:
    screen = io.StringIO()
    Console(file=screen, width=width).print(looks_table(looks, width))
    return [line.rstrip() for line in screen.getvalue().splitlines()]


def test_a_row_says_how_far_and_how_fast_a_run_is_and_what_is_wrong() -> None:
    head, first, second, third, last, problem = lines_of(200)
    for name in ("run", "state", "shards", "images/s", "idle", "left", "failures", "output"):
        assert name in head
    for figure in ("first", "running", "12/40", "1,234", "3.1", "7%", "2 min 5 s", "s3://bucket/a"):
        assert figure in first
    assert "2 decode_error" in first and "not_in_best_k" not in first
    assert "1 shard missing" in second
    assert "you@host, process 2 has not renewed its lease" in third
    assert last.split() == ["s3://bucket/d", "unreadable", "s3://bucket/d"]
    assert problem == "There is no run in s3://bucket/d"


def test_runs_that_share_an_output_have_a_row_each() -> None:
    look = Look(
        "s3://bucket/shared", "running", "shared", holder="planner", planned=200,
        totals=RunTotals(shards=30, kept=60), workers=(
            Worker("0-99", "running", "me@host, process 1", 0.0, 100, RunTotals(shards=30, kept=60),
                   RunUsage(60.0, 1.5, 1, 0.25)),
            Worker("100-199", "stalled", "you@host, process 2", 0.0, 100, RunTotals(), None),
        ),
    )  # fmt: skip
    whole, first, second = lines_of(200, [look])[1:]
    assert "30/200" in whole and "lease" not in whole
    for figure in ("shards 0-99", "running", "30/100", "60", "1.5", "25%", "me@host, process 1"):
        assert figure in first
    assert "shards 100-199" in second and "stalled" in second
    assert "you@host, process 2 has not renewed its lease" in second


def test_a_narrow_terminal_loses_no_figure() -> None:
    text = "\n".join(lines_of(80))
    assert all(figure in text for figure in ("12/40", "1,234", "3.1", "7%", "2 min 5 s"))
    assert max(map(len, text.splitlines())) <= 80
    assert "There is no run in s3://bucket/d" in text.splitlines()  # whole, below the table


def test_a_good_run_has_no_failures() -> None:
    assert failures(Look("a", "finished", planned=1, totals=RunTotals(shards=1))) == ""


def test_json_is_a_line_with_an_object_per_output(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["top", str(DATASET), str(tmp_path), "--once", "--json"])
    assert done.exit_code == 1, "one of them cannot be read"
    (line,) = done.stdout.splitlines()
    finished, empty = json.loads(line)
    assert finished["state"] == "finished" and finished["missing"] == 0
    assert empty["state"] == "unreadable" and "There is no run in" in empty["problem"]


def test_without_a_terminal_it_looks_once() -> None:
    done = CliRunner().invoke(app, ["top", str(DATASET)])
    assert done.exit_code == 0 and "finished" in done.stdout


def test_in_a_terminal_it_refreshes_until_ctrl_c_which_is_no_failure() -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "top", str(DATASET), "--every", "1"],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        cwd=DATASET.parents[3], env={**os.environ, "TERM": "xterm", "COLUMNS": "160"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while shown.count(b"finished") < 2:  # the second one is a refresh
        shown += os.read(ours, 65536)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 0
    rest = b""
    try:
        while part := os.read(ours, 65536):
            rest += part
    except OSError:  # the terminal is closed
        pass
    finally:
        os.close(ours)
    assert b"Traceback" not in rest and b"Interrupted" not in rest


@pytest.mark.parametrize("url", ["s3://", "nothing://here"])
def test_a_wrong_url_is_one_sentence(url: str) -> None:
    done = CliRunner().invoke(app, ["top", url, "--once"])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
