"""The commands `rerender`, through Prefect, and `compare` on finished runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.manifests import require_run_manifest, write_run_manifest
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finished_below


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run; tests only read it."""
    return finished_below(tmp_path_factory.mktemp("finished"))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.usefixtures("prefect_server")
def test_rerender_makes_a_dataset_of_its_own(finished: RunConfig, tmp_path: Path) -> None:
    assert call("tidy", finished.output, "--keep", "tokens", "--dry-run").exit_code == 0
    new = tmp_path / "new"
    done = call("rerender", finished.output, new, "--set", "upscale.model=null")
    assert done.exit_code == 0, done.output
    assert "8 of 15 images published from 5 prompts" in done.stdout
    lineage = require_run_manifest(Storage(str(new))).lineage
    assert lineage is not None and set(lineage.changes) == {"upscale.model"}
    assert call("verify", new, "--sample", 2).exit_code == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=9", "seed would change the image tokens"),
        ("decode.modell=x", "decode.modell"),
        ("decode.model=vqgan-f8", "--fetch-weights"),
    ],
)
def test_what_cannot_be_rerendered_is_one_sentence(
    finished: RunConfig, tmp_path: Path, override: str, message: str
) -> None:
    done = call("rerender", finished.output, tmp_path / "new", "--set", override)
    assert done.exit_code == 2 and message in done.stderr, done.output


@pytest.fixture(scope="module")
def days(finished: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same dataset, finished on two days; tests only read it."""
    folder = tmp_path_factory.mktemp("days")
    for number in (1, 2):
        copy = Storage(str(shutil.copytree(finished.output, folder / f"day-{number}")))
        run = require_run_manifest(copy)
        write_run_manifest(copy, replace(run, finished=f"2026-07-0{number}"))
    return folder


def test_compare_prints_both_figures(days: Path, tmp_path: Path) -> None:
    page = tmp_path / "comparison.html"
    done = call("compare", days / "day-1", days / "day-2", "--by", "theme", "--page", page)
    assert done.exit_code == 0, done.output
    rows = {line[:30].strip(): line[30:].split() for line in done.stdout.splitlines()}
    assert any(name.startswith("Published images") for name in rows)
    assert "malevich" in done.stdout and f"The page is {page}" in done.stdout
    assert page.read_text("utf-8").startswith("<!doctype html>")


def test_compare_finds_the_newest_two_of_a_pattern(days: Path) -> None:
    done = call("compare", days / "day-*", "--json")
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    assert values["before"]["output"].endswith("day-1")
    assert values["after"]["output"].endswith("day-2")
    assert values["drift"]["score"] == values["drift"]["diversity"] == 0


def test_drift_beyond_a_limit_is_exit_code_1(days: Path, finished: RunConfig) -> None:
    run = require_run_manifest(Storage(finished.output))
    assert run.usage.device_hours > 0
    same = call("compare", days / "day-1", days / "day-2", "--max-drift", "seconds=0.1")
    assert same.exit_code == 0, same.output
    changed = replace(run, usage=replace(run.usage, device_hours=2 * run.usage.device_hours))
    write_run_manifest(Storage(str(days / "day-2")), replace(changed, finished="2026-07-02"))
    done = call("compare", days / "day-*", "--max-drift", "seconds=0.1,score=0")
    assert done.exit_code == 1 and done.stderr == "Beyond the limit: seconds.\n"
    assert "100%, more than 0.1" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-drift", "scores=1"], "did you mean score?"),
        (["--max-drift", "cost=1"], "The limit of cost cannot be checked"),
        (["--by", "them"], "did you mean theme?"),
        (["--page", "/nowhere/x.html"], "there is no folder /nowhere"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    days: Path, arguments: list[str], message: str
) -> None:
    done = call("compare", days / "day-1", days / "day-2", *arguments)
    assert done.exit_code == 2 and message in done.stderr, done.output
