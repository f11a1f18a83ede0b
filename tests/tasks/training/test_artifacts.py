"""What Prefect's pages show of a training; a server that rejects it does not end the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rudalle_lib.config.fine_tune import FineTuneConfig
from tasks.runtime.events import Event, Noticed, listener
from tasks.training import artifacts

FIGURES = [{"step": 0.0, "loss": 3.0}, {"step": 1.0, "loss": 2.0, "held_out_loss": 2.5}]


@pytest.fixture
def config(tmp_path: Path) -> FineTuneConfig:
    return FineTuneConfig.model_validate(
        {"name": "mine", "output": str(tmp_path), "data": [{"uri": "x"}], "training": {"steps": 4}}
    )


def test_a_page_a_table_and_progress(
    config: FineTuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, Any] = {}

    def keep(content: Any, key: str, description: str) -> None:
        made[key] = content

    for name in ("progress", "markdown", "table"):
        monkeypatch.setattr(artifacts, f"create_{name}_artifact", keep)
    (tmp_path / "samples").mkdir()
    Image.new("RGB", (3000, 2000)).save(tmp_path / "samples" / "step-00000002.png")
    artifacts.TrainingArtifacts(config, tmp_path).publish(FIGURES)
    assert made["mine-training"] == 50.0
    assert "![losses](data:image/svg" in made["mine-losses"]
    assert "![samples](data:image/webp" in made["mine-losses"]
    assert made["mine-measurements"] == [{"step": 2, "loss": 2.0, "held_out_loss": 2.5}]
    assert (tmp_path / "losses.svg").is_file()


def test_a_server_that_rejects_is_only_a_notice(
    config: FineTuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reject(*_: object, **__: object) -> None:
        raise ValueError("too large")

    for name in ("progress", "markdown", "table"):
        monkeypatch.setattr(artifacts, f"create_{name}_artifact", reject)
    told: list[Event] = []
    token = listener.set(told.append)
    artifacts.TrainingArtifacts(config, tmp_path).publish(FIGURES)
    listener.reset(token)
    assert [isinstance(one, Noticed) for one in told] == [True] * 3
