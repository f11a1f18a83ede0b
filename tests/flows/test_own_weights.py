"""A run with weights of one's own by name: verified, published and replayed bit for bit."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner, Result

from flows.cli import app
from tests.support.tiny_run import configure
from tests.support.tiny_stack import write_tiny_stack

pytestmark = pytest.mark.usefixtures("prefect_server")

NAMES = {"my-dalle": "demo-dalle", "my-vqgan": "demo-vqgan", "my-ruclip": "demo-ruclip"}


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # paths are not broken into lines


def call(*arguments: object) -> Result:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done


def test_names_work_in_every_command(settings: dict[str, object], tmp_path: Path) -> None:
    stack = write_tiny_stack(tmp_path / "mine", seed=1)
    models = {name: {"base": base, "folder": str(stack / base)} for name, base in NAMES.items()}
    config = configure(
        settings, tmp_path / "out", weights={"models": models},
        generate={"model": "my-dalle"}, decode={"model": "my-vqgan"}, score={"model": "my-ruclip"},
    )  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))

    listed = call("models", "list", "--config", path).stdout
    assert str(stack / "demo-dalle") in next(x for x in listed.splitlines() if "my-dalle" in x)
    assert "weights of your own with the network of demo-vqgan" in listed
    assert "my-ruclip works" in call("models", "verify", "my-ruclip", "--config", path).stdout
    assert "base" in call("models", "show", "my-dalle", "--config", path).stdout

    call("plan", path)
    call("run", path)
    row = pq.read_table(min((tmp_path / "out" / "data" / "metadata").iterdir())).to_pylist()[0]
    again = call("replay", tmp_path / "out", row["image_id"], "--to", tmp_path / "again.png")
    assert "identical to the published file" in again.stdout
    assert "0 new" in call("plan", path).stdout
    card = (tmp_path / "out" / "README.md").read_text()
    assert "my-dalle" in card
