"""The command `fine-tune` without a training: a dry run, and errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from flows.cli import app
from rudalle_lib.config.fine_tune import FineTuneConfig
from tests.support.image_data import write_folder

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def config(tiny_stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration of the tiny models."""
    monkeypatch.setenv("COLUMNS", "300")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({
        "name": "mine",
        "output": str(tmp_path / "out"),
        "data": [{"uri": str(write_folder(tmp_path / "images"))}],
        "weights": {"folder": str(tiny_stack), "offline": True},
    }))  # fmt: skip
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["fine-tune", *map(str, arguments)])


def test_a_dry_run_checks_and_writes_nothing(config: Path, tmp_path: Path) -> None:
    done = call(config, "--dry-run", "--set", "training.steps=7")
    assert done.exit_code == 0, done.output
    assert "7 of 8 images" in done.stdout and "the decoder demo-dalle" in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainig.steps=7", "did you mean training"),
        ("base=demo-vqgan", "'demo-vqgan' is a vqgan, expected a decoder"),
        ("data=[{uri: nowhere}]", "nowhere"),
        ("data=[]", "lists no dataset"),
        ("name=Mine", "expected a name of small letters"),
    ],
)
def test_wrong_input_is_a_sentence(config: Path, override: str, message: str) -> None:
    done = call(config, "--set", override)
    assert done.exit_code == 2 and message in done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("finetune-*.yaml")))
def test_recipes_are_valid(path: Path) -> None:
    assert FineTuneConfig.load(str(path)).name == path.stem.replace("finetune", "my")
