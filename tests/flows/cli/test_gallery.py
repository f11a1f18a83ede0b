"""The command `gallery` writes a page to share, and only for a finished run."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from flows.cli import app
from rudalle_lib.config.run import RunConfig
from rudalle_lib.report.report import write_report
from rudalle_lib.storage.storage import Storage
from tests.support.gallery_pages import page_data
from tests.support.hand_made import NAMES, plan_by_hand, publish_by_hand


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["gallery", *map(str, arguments)])


def test_the_page_of_a_finished_run_is_written(tmp_path: Path) -> None:
    config = RunConfig.model_validate({"output": str(tmp_path / "out")})
    storage = Storage(config.output)
    publish_by_hand(storage, config, plan_by_hand(config, tmp_path))
    write_report(storage, config, dict.fromkeys(NAMES, "digest"), 1, "2021-11-02T00:00:00+00:00")
    page = tmp_path / "page.html"
    done = call(config.output, "--to", page, "--hours", 2)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(f"Wrote {page}.") and "for 2 h" in done.stdout
    assert len(page_data(page.read_text("utf-8"))["rows"]) == 11
    unwritable = call(config.output, "--to", tmp_path / "missing" / "page.html")
    assert unwritable.exit_code == 2 and "Cannot write " in unwritable.stderr


def test_an_output_without_a_finished_run_is_an_error(tmp_path: Path) -> None:
    done = call(tmp_path, "--to", tmp_path / "page.html")
    assert done.exit_code == 2
    assert "There is no finished run in" in done.stderr
    assert list(tmp_path.iterdir()) == []
