"""`check_model` runs every kind of model and detects damaged weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rudalle_lib import registry
from rudalle_lib.checks.models import check_model
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.errors import ConfigError, WeightsError
from tests.support.tiny_stack import write_tiny_stack

DEMO = ["demo-dalle", "demo-vqgan", "demo-ruclip", "demo-realesrgan-x2"]


@pytest.fixture
def stack(tmp_path: Path) -> WeightsConfig:
    return WeightsConfig(folder=str(write_tiny_stack(tmp_path)))


def test_every_kind_of_model_is_run(stack: WeightsConfig) -> None:
    for name in [*DEMO, "demo-marian"]:
        check = check_model(name, stack)
        assert check.entry is registry.get(name)
        assert check.files.keys() == check.sha256.keys() == check.entry.files.keys()
        assert ("translation" if name == "demo-marian" else "finite") in check.output


def test_damaged_weights_are_detected(stack: WeightsConfig) -> None:
    for name in DEMO:
        path = Path(str(stack.folder)) / name / "model.safetensors"
        state = load_file(path)
        save_file({key: torch.full_like(state[key], torch.nan) for key in state}, path)
        with pytest.raises(WeightsError, match=f"{name} loads, but its output is not finite"):
            check_model(name, stack)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean malevich-v3"):
        check_model("malevic-v3")
