"""What the tests of the data of a fine-tuning share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rudalle_lib.config.fine_tune import FineTuneConfig
from tests.support.image_data import fine_tuning


@pytest.fixture
def tuning(tiny_stack: Path, tmp_path: Path) -> Callable[..., FineTuneConfig]:
    """Makes the configuration of a fine-tuning on some datasets; its output is `tmp_path/out`."""

    def make(*uris: object, output: object = tmp_path / "out", **settings: Any) -> FineTuneConfig:
        return fine_tuning(tiny_stack, output, *uris, **settings)

    return make
