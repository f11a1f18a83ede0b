"""`--json`: the same figures as the tables, as valid JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from rudalle_lib.config.run import RunConfig
from rudalle_lib.report.report import write_report
from rudalle_lib.storage.storage import Storage
from tests.support.hand_made import NAMES, plan_by_hand, publish_by_hand


@pytest.fixture
def output(tmp_path: Path) -> str:
    """A finished output of one shard with two published images."""
    settings = {"name": "by hand", "output": str(tmp_path / "out"), "score": {"keep_best": 1}}
    config = RunConfig.model_validate(settings)
    storage = Storage(config.output)
    publish_by_hand(storage, config, plan_by_hand(config, tmp_path))
    write_report(storage, config, dict.fromkeys(NAMES, "digest"), 1, "2021-11-02T00:00:00+00:00")
    return config.output


def call(*arguments: str, code: int = 0) -> object:
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == code, done.stderr
    return json.loads(done.stdout)


def test_status(output: str) -> None:
    status = call("status", output)
    assert isinstance(status, dict)
    assert (status["name"], status["shards_planned"]) == ("by hand", 1)
    assert (status["finished"]["images"], status["finished"]["kept"]) == (8, 2)
    assert status["last_run"]["scores"]["highest"] == 0.5


def test_verify_names_every_fault(output: str) -> None:
    images = [path for path in (Path(output) / "data/images").rglob("*") if path.is_file()]
    for image in images:
        image.unlink()
    audit = call("verify", output, "--sample", "0", code=1)
    assert isinstance(audit, dict)
    faults = {(fault["kind"], fault["path"]) for fault in audit["faults"]}
    assert {("missing", path.relative_to(output).as_posix()) for path in images} <= faults


def test_models() -> None:
    models = call("models")
    assert models == call("models", "list")
    assert isinstance(models, list)
    (malevich,) = [model for model in models if model["name"] == "malevich-v3"]
    assert malevich["kind"] == "decoder" and malevich["source"] == "sberbank-ai/rudalle-Malevich"
