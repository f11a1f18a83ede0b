"""The command `push` says what it sends, what it would send, and why it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from rudalle_lib.config.run import RunConfig
from rudalle_lib.report.report import write_report
from rudalle_lib.storage.storage import Storage
from tests.support.hand_made import NAMES, plan_by_hand, publish_by_hand
from tests.support.hub_server import TOKEN, HubServer, hub_server

TARGET = "hf://datasets/somebody/squares"

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning"
)
"""huggingface_hub uploads as httpx no longer wants it."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def output(tmp_path: Path) -> str:
    """A finished run with two images."""
    config = RunConfig.model_validate(
        {"output": str(tmp_path / "out"), "score": {"keep_best": 1}, "upscale": {"model": None}}
    )
    storage = Storage(config.output)
    publish_by_hand(storage, config, plan_by_hand(config, tmp_path))
    weights = {stage: "digest" for stage in NAMES if stage != "upscale"}
    write_report(storage, config, weights, 1, "2021-11-02T00:00:00+00:00")
    return config.output


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["push", *map(str, arguments)])


def test_a_dry_run_lists_the_files_and_the_push_sends_them(output: str, hub: HubServer) -> None:
    dry = call(output, TARGET, "--dry-run")
    assert dry.exit_code == 0, dry.stderr
    lines = dry.stdout.splitlines()
    assert lines[0].startswith("would send data/merged/00000.") and "2 images" in lines[0]
    assert lines[-1].endswith("Nothing was changed.") and hub.repositories == {}
    done = call(output, TARGET)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith(f"{hub.url}/datasets/somebody/squares")
    again = call(output, TARGET)
    assert again.stdout.splitlines()[-1].startswith("2 images: 0 new files (0.0 kB), 3 unchanged.")
    assert hub.repositories["somebody/squares"].private


def test_a_folder_gets_a_copy(output: str, tmp_path: Path) -> None:
    done = call(output, tmp_path / "copy")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "copy/README.md").is_file()
    refused = call(output, tmp_path / "copy", "--public")
    assert refused.exit_code == 2 and "are for targets hf://" in refused.stderr


def test_no_run_and_the_hub_as_an_output_are_one_sentence(
    output: str, hub: HubServer, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    done = call(tmp_path / "empty", TARGET)
    assert done.exit_code == 2 and "There is no finished run in" in done.stderr
    run = CliRunner().invoke(app, ["run", "demo", "--output", TARGET])
    assert run.exit_code == 2
    assert "rudalle-flows push OUTPUT hf://datasets/OWNER/NAME" in run.stderr.splitlines()[-1]
    assert hub.requests == []
