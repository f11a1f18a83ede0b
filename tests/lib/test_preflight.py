"""What is wrong is known before anything is written, the cheapest first."""

from __future__ import annotations

from pathlib import Path

import pytest

from rudalle_lib.config import RunConfig
from rudalle_lib.errors import (
    ConfigError,
    PromptError,
    RudalleError,
    SettingsError,
    StorageError,
    WeightsError,
)
from rudalle_lib.preflight import check_inputs, check_run
from tests.tiny_run import configure
from tests.tiny_stack import write_tiny_stack


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("run")
    table = folder / "prompts.csv"
    table.write_text("prompt\nкруг\n", encoding="utf-8")
    weights = {"folder": str(write_tiny_stack(folder / "weights")), "offline": True}
    return {"prompts": {"uri": str(table)}, "weights": weights, "runtime": {"devices": "cpu"}}


def test_a_good_run_gives_a_digest_for_every_model(
    settings: dict[str, object], tmp_path: Path
) -> None:
    digests = check_run(configure(settings, tmp_path / "out"))
    assert list(digests) == ["translate", "generate", "decode", "score", "upscale"]
    assert len(set(digests.values())) == 5


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"decode": {"model": "nothing"}}, ConfigError),
        ({"prompts": {"uri": "missing.csv"}}, StorageError),
        ({"prompts": {"columns": {"prompt": "caption"}}}, PromptError),
        ({"runtime": {"devices": "cuda:77"}}, SettingsError),
        ({"runtime": {"dtype": "float16"}}, SettingsError),
        ({"upscale": {"model": "realesrgan-x8"}}, WeightsError),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_left_behind(
    changes: dict[str, object],
    error: type[RudalleError],
    settings: dict[str, object],
    tmp_path: Path,
) -> None:
    with pytest.raises(error):
        check_run(configure(settings, tmp_path / "out", **changes))
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert left == []


def test_an_output_that_cannot_be_written_is_known_at_once(
    settings: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        check_run(configure(settings, tmp_path / "file" / "out"))


def test_inputs_are_checked_without_weights_or_output(tmp_path: Path) -> None:
    check_inputs(RunConfig(output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
