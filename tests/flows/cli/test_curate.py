"""The command `curate`: a table of decisions, and what it says about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import app
from rudalle_lib import read_images, read_rejects
from rudalle_lib.config.run import RunConfig
from tests.support.finished_run import finished_below


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return finished_below(tmp_path_factory.mktemp("curated"))


def test_decisions_are_added_and_counted(config: RunConfig, tmp_path: Path) -> None:
    first, second = read_images(config.output).index[:2]
    table = tmp_path / "mine.csv"
    table.write_text(f"image_id,decision\n{first},keep\n{second},reject\n", encoding="utf-8")
    done = CliRunner().invoke(app, ["curate", config.output, str(table)])
    assert done.exit_code == 0, done.stderr
    assert done.stdout == (
        f"{config.output} has 2 decisions by hand, 1 to keep and 1 to reject; 2 new, 0 changed.\n"
        "The next run applies them; nothing is drawn again.\n"
    )
    written = (Path(config.output) / "curation.csv").read_text("utf-8").splitlines()
    assert written[0] == "image_id,decision,note" and sorted(written[1:]) == sorted(
        [f"{first},keep,", f"{second},reject,"]
    )
    table.write_text(f"image_id,decision\n{first},maybe\n", encoding="utf-8")
    wrong = CliRunner().invoke(app, ["curate", config.output, str(table)])
    assert wrong.exit_code == 2 and f"{table}, line 2: the decision about" in wrong.stderr
    missing = CliRunner().invoke(app, ["curate", config.output, str(tmp_path / "none.csv")])
    assert missing.exit_code == 2 and "none.csv" in missing.stderr


@pytest.mark.usefixtures("prefect_server")
def test_apply_publishes_what_was_decided_and_draws_nothing(
    settings: dict[str, object], tmp_path: Path
) -> None:
    path, output = tmp_path / "tiny.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump({**settings, "output": str(output)}))
    assert CliRunner().invoke(app, ["run", str(path)]).exit_code == 0
    before = read_images(str(output))
    drawn = {file: file.stat().st_mtime_ns for file in (output / "stages").rglob("*generate*")}
    assert drawn
    rejected = before.index[0]
    rejects = read_rejects(str(output))
    kept = rejects[rejects.reason == "not_in_best_k"].image_id.iloc[0]
    table = tmp_path / "mine.csv"
    table.write_text(f"image_id,decision\n{rejected},reject\n{kept},keep\n", encoding="utf-8")
    done = CliRunner().invoke(app, ["curate", str(output), str(table), "--apply"])
    assert done.exit_code == 0, done.stderr
    assert "2 decisions by hand, 1 to keep and 1 to reject" in done.stdout
    assert done.stdout.splitlines()[-1].startswith(f"The images are in {output}")
    after = read_images(str(output))
    assert rejected not in after.index and kept in after.index
    assert {file: file.stat().st_mtime_ns for file in drawn} == drawn
    reasons = read_rejects(str(output)).set_index("image_id").reason
    assert reasons[rejected] == "by_hand"
