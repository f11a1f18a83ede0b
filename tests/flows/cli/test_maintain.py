"""The commands `verify`, `replay`, `retry` and `tidy` on a finished run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from rudalle_lib.dataset.manifests import require_run_manifest, write_run_manifest
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finished_below
from tests.support.web_servers import web_server


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a finished run; tests only read it."""
    return Path(finished_below(tmp_path_factory.mktemp("finished")).output)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # paths are not broken into lines


def published_rows(output: Path) -> list[dict[str, Any]]:
    path = min((output / "data" / "metadata").iterdir())
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_verify_finds_no_fault_in_a_finished_run(finished: Path) -> None:
    done = call("verify", finished, "--sample", 4)
    assert done.exit_code == 0, done.stdout + done.stderr
    rows = {line[:7].strip(): line[7:].strip() for line in done.stdout.splitlines()[1:]}
    assert "images" in rows["checked"] and rows["faults"] == "none"


def test_verify_reports_a_fault_and_repair_reopens_its_shard(
    finished: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(finished, tmp_path / "out")
    image = next((copy / "data" / "images" / "00001").rglob("*.png"))
    image.write_bytes(b"damaged")
    done = call("verify", copy, "--sample", 0)
    assert done.exit_code == 1 and image.name in done.stdout
    assert (copy / "shards" / "00001.json").exists()
    repaired = call("verify", copy, "--sample", 0, "--repair")
    assert repaired.exit_code == 1
    assert "1 shard reopened; the next run rebuilds them." in repaired.stdout
    assert not (copy / "shards" / "00001.json").exists()


def test_replay_draws_an_identical_image(finished: Path, tmp_path: Path) -> None:
    row, *_ = published_rows(finished)
    to = tmp_path / "again.png"
    done = call("replay", finished, row["image_id"], "--to", to)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{to}: identical to the published file.\n"
    assert to.read_bytes() == (finished / row["path"]).read_bytes()


def test_replay_reports_a_difference_and_an_unknown_image(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "out")
    first, second, *_ = published_rows(copy)
    shutil.copyfile(copy / second["path"], copy / first["path"])
    done = call("replay", copy, first["image_id"], "--to", tmp_path / "again.png")
    assert done.exit_code == 1 and "differs from the published file; " in done.stdout
    unknown = call("replay", copy, "nothing-000")
    assert unknown.exit_code == 2 and "nothing-000" in unknown.stderr


def test_weights_that_a_dataset_names_are_downloaded_only_with_the_option(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    image_id = published_rows(finished)[0]["image_id"]
    copy = shutil.copytree(finished, tmp_path / "out")
    with web_server() as stranger:
        run = require_run_manifest(Storage(str(copy)))
        recorded = json.loads(json.dumps(run.config))
        recorded["weights"] = {"endpoint": stranger.url}
        recorded["score"]["model"] = "ruclip-small"
        weights = {**run.weights, "ruclip-small": "unknown"}
        write_run_manifest(Storage(str(copy)), replace(run, config=recorded, weights=weights))
        done = [
            call("replay", copy, image_id, "--to", tmp_path / "x.png"),
            call("retry", copy, "--reason", "too_long"),
            call("verify", copy),
        ]
        assert stranger.requests == []
        assert done[0].exit_code == 2 and len(done[0].stderr.splitlines()) == 1
        assert "with the option --fetch-weights" in done[0].stderr
        assert done[1].exit_code == 0  # nothing to try again
        asked = call("replay", copy, image_id, "--fetch-weights", "--to", tmp_path / "x.png")
        assert asked.exit_code == 2 and stranger.requests != []


def test_retry_of_a_reason_that_does_not_occur_runs_nothing(finished: Path) -> None:
    done = call("retry", finished, "--reason", "too_long")
    assert (done.exit_code, done.stdout) == (
        0,
        "No prompt or image in a finished shard was rejected as too_long.\n",
    )
    unknown = call("retry", finished, "--reason", "too_longg")
    assert unknown.exit_code == 2 and "too_long" in unknown.stderr


def test_tidy_tells_sizes_before_and_after(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "out")
    told = call("tidy", copy, "--dry-run")
    assert told.exit_code == 0 and told.stdout.splitlines()[-1] == "Nothing was deleted."
    assert any((copy / "stages" / "decode").iterdir())
    done = call("tidy", copy, "--keep", "tokens")
    assert done.stdout.splitlines() == told.stdout.splitlines()[:-1]
    rows = {line[:15].strip(): line[15:].strip() for line in done.stdout.splitlines()[1:]}
    assert rows["generate"].startswith("3 files, ") and rows["generate"].endswith(", kept")
    assert rows["decode"].endswith(", deleted")
    assert rows["a change costs"] == "to decode 15 images again; nothing is drawn again"
    assert not (copy / "stages" / "decode").exists()
    wrong = call("tidy", copy, "--keep", "tokans")
    assert wrong.exit_code == 2 and "did you mean tokens?" in wrong.stderr


def test_retry_says_that_tokens_are_gone(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(finished, tmp_path / "out")
    assert call("tidy", copy, "--keep", "nothing").exit_code == 0
    monkeypatch.setattr("flows.cli.maintain.run_and_summarise", lambda _: None)
    done = call("retry", copy, "--reason", "translation_failed")
    assert "Their tokens are gone from stages/, so 4 images are drawn again." in done.stdout
