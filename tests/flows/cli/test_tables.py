"""The tables that commands print, from an output that is made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.cli.tables import (
    describe_difference,
    print_audit,
    print_metrics,
    print_models,
    print_pairs,
    print_status,
)
from rudalle_lib import registry
from rudalle_lib.checks.audit import audit_output
from rudalle_lib.config.run import RunConfig
from rudalle_lib.pipeline.diff import Difference
from rudalle_lib.pipeline.status import read_status
from rudalle_lib.prompts.plan import Plan
from rudalle_lib.report.report import write_report
from rudalle_lib.schema.records import ShardSpec
from rudalle_lib.storage.storage import Storage
from tests.support.hand_made import NAMES, plan_by_hand, publish_by_hand

SHARDS = tuple(ShardSpec(index, f"plan/{index:05d}.parquet", 3) for index in range(3))


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A finished output of one shard with two published images."""
    monkeypatch.setenv("COLUMNS", "300")  # no row is broken into lines
    settings = {"name": "by hand", "output": str(tmp_path / "out"), "score": {"keep_best": 1}}
    config = RunConfig.model_validate(settings)
    storage = Storage(config.output)
    publish_by_hand(storage, config, plan_by_hand(config, tmp_path))
    write_report(storage, config, dict.fromkeys(NAMES, "digest"), 1, "2021-11-02T00:00:00+00:00")
    return config.output


def difference_of(new: tuple[ShardSpec, ...], needs: dict[str, int], new_prompts: int = 0) -> str:
    added = tuple(shard.index for shard in new[:1]) if new_prompts else ()
    plan = Plan(SHARDS, added, new_prompts, 0, "table.csv", 9, {}, 0)
    return describe_difference(needs, plan, Difference((), new, ()))


def test_a_difference_counts_images_by_their_first_stage_and_prompts() -> None:
    needs = {"": 12_310, "upscale": 402}
    expected = "12,310 images unchanged, 402 to upscale only, 3 new prompts"
    assert difference_of(SHARDS[:1], needs, new_prompts=3) == expected
    assert difference_of(SHARDS[:1], {"generate": 1}) == (
        "1 image to redraw, 3 planned prompts not finished"
    )
    assert difference_of((), {}) == "0 new prompts"
    needs = {"publish": 7, "withdrawn": 2}
    assert difference_of((), needs) == "7 images to publish only, 2 to withdraw"


def test_pairs_are_printed_under_their_title(capsys: pytest.CaptureFixture[str]) -> None:
    print_pairs("a [bold]title[/bold]", [("name", "[red]value[/red]"), ("longer name", "2")])
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "a [bold]title[/bold]",
        "name         [red]value[/red]",
        "longer name  2",
    ]


def test_status_shows_the_figures_of_the_run(
    output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_status(output, read_status(Storage(output)))
    title, *lines = capsys.readouterr().out.splitlines()
    rows = {line[:30].split("  ")[0]: line for line in lines}
    assert title == "by hand"
    assert "1 of 1 finished" in rows["shards"] and "8 drawn, 2 published" in rows["images"]
    assert "4 not_in_best_k" in rows["rejected"]
    assert "generate 1.0" in rows["seconds per stage"]


def test_metrics_are_prometheus_text(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_metrics(output, read_status(Storage(output)))
    assert 'rudalle_flows_images_published{run="by hand"} 2.0' in capsys.readouterr().out


def test_an_audit_shows_a_limited_number_of_faults(
    output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    images = sorted((Path(output) / "data" / "images").rglob("*.png"))
    for image in images:
        image.unlink()
    audit = audit_output(Storage(output))
    print_audit(output, audit, 1)
    shown = capsys.readouterr().out
    assert len(audit.faults) > 1
    assert sum(fault.path in shown for fault in audit.faults) == 1
    hidden = len(audit.faults) - 1 + max(len(audit.notes) - 1, 0)
    assert f"and {hidden} more" in shown


def test_models_are_listed_with_kind_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    print_models([registry.get(name) for name in registry.names()])
    shown = capsys.readouterr().out
    assert "malevich-v3" in shown and "demo-dalle" in shown and "this package" in shown


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_no_terminal_is_too_narrow_for_the_descriptions_of_models(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    print_models([registry.get(name) for name in registry.names()])
    shown = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= columns
    assert "description" in shown and "Suprematist" in shown
    assert "sberbank-ai/rudalle-Malevich" in shown or columns < 80
