"""Configurations of fine-tunings of tiny models, and one whose data is encoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rudalle_lib.config.fine_tune import FineTuneConfig
from tests.support.image_data import write_folder

Make = Callable[..., FineTuneConfig]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images with captions."""
    return write_folder(tmp_path_factory.mktemp("images"), 8)


@pytest.fixture(scope="session")
def make(tiny_stack: Path, images: Path) -> Make:
    """Makes a configuration for an output."""

    def config(output: Path | str, **changes: Any) -> FineTuneConfig:
        return FineTuneConfig.model_validate({
            "name": "mine",
            "output": str(output),
            "data": [{"uri": str(images)}],
            "weights": {"folder": str(tiny_stack), "offline": True},
            "encoding": {"held_out": 0.4},
            "training": {"steps": 2, "batch_size": 2, "dtype": "float32"},
            "evaluation": {"every": 1, "samples": 2},
            "runtime": {"devices": "cpu", "threads": 1},
            **changes,
        })  # fmt: skip

    return config
