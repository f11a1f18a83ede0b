"""Checks before a fine-tuning starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.errors import ConfigError, DataError, RudalleError, SettingsError, StorageError
from rudalle_lib.fine_tuning import preflight
from rudalle_lib.fine_tuning.outlook import look_ahead
from rudalle_lib.fine_tuning.preflight import check_fine_tune
from rudalle_lib.storage.storage import Storage
from tests.support.tiny_stack import write_tiny_vqgan

Make = Callable[..., FineTuneConfig]


def test_a_good_configuration_has_digests_and_leaves_nothing_behind(
    make: Make, tmp_path: Path
) -> None:
    weights = check_fine_tune(make(tmp_path / "out"))
    assert set(weights) == {"demo-dalle", "demo-vqgan"}
    assert Storage(str(tmp_path / "out")).list() == []


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"base": "demo-dall"}, ConfigError, "did you mean demo-dalle"),
        ({"base": "demo-vqgan"}, ConfigError, "'demo-vqgan' is a vqgan, expected a decoder"),
        ({"vqgan": "vqgan-f8"}, RudalleError, "vqgan"),
        ({"data": [{"uri": "nowhere"}]}, RudalleError, "nowhere"),
        ({"trains": "vqgan", "training": {"average": 0.9}}, SettingsError, "split_every: null"),
        ({"trains": "scorer", "training": {"batch_size": 1}}, SettingsError, "at least 2"),
        (
            {"trains": "scorer", "training": {"images_at_once": 4}},
            SettingsError,
            "images_at_once is 4, .* expected null or 8",
        ),
        ({"trains": "scorer", "runtime": {"processes": 2}}, SettingsError, "processes is 2"),
    ],
)
def test_wrong_settings_are_errors(
    make: Make, tmp_path: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_fine_tune(make(tmp_path / "out", **changes))


def test_a_vqgan_that_doubles_images_cannot_be_trained(make: Make, tmp_path: Path) -> None:
    weights = {"folder": str(write_tiny_vqgan(tmp_path / "weights", dwt=True)), "offline": True}
    with pytest.raises(SettingsError, match="base, demo-vqgan, draws images of twice the size"):
        check_fine_tune(make(tmp_path / "out", trains="vqgan", weights=weights))


def test_an_empty_dataset_is_an_error(make: Make, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("caption,image\n")
    with pytest.raises(DataError, match="table.csv is empty"):
        check_fine_tune(make(tmp_path / "out", data=[{"uri": str(tmp_path / "table.csv")}]))


def test_the_output_of_a_dataset_is_left_alone(make: Make, tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    Storage(str(tmp_path)).write_bytes("plan/00000.parquet", b"x")
    with pytest.raises(StorageError, match="is the output of a dataset: it has plan"):
        check_fine_tune(make(tmp_path))


def test_bounds_and_missing_packages_are_errors(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(tmp_path / "out")
    monkeypatch.setattr(preflight, "PACKAGES", ("no_such_package",))
    with pytest.raises(SettingsError, match=r"pip install 'rudalle-flows\[train\]'"):
        check_fine_tune(config)
    monkeypatch.setenv("RUDALLE_ALLOW_INPUTS", "/nowhere")
    with pytest.raises(SettingsError, match="data.0.uri is .*RUDALLE_ALLOW_INPUTS"):
        check_fine_tune(config)


def test_the_outlook_says_what_would_be_done(make: Make, tmp_path: Path) -> None:
    rows = dict(look_ahead(make(tmp_path / "out")))
    assert rows["state"] == "new" and rows["steps"] == "2 of 2 images"
    assert rows["new weights"] == str(tmp_path / "out" / "weights" / "mine")
    assert not (tmp_path / "out").exists()
