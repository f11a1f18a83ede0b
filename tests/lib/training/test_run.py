"""What trainings share: weight averages, the schedule, export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from rudalle_lib.training.run import WeightAverage, cosine, export


def test_average_follows_the_parameters_and_takes_their_place() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = WeightAverage(model, 0.5)
    nn.init.ones_(model.weight)
    average.update(model, step=1000)
    assert average.values["weight"].item() == pytest.approx(0.5)
    average.update(model, step=1000)
    assert average.values["weight"].item() == pytest.approx(0.75)
    average.swap(model)
    assert model.weight.item() == pytest.approx(0.75)
    average.swap(model)
    assert model.weight.item() == 1.0
    early = WeightAverage(model, 0.999)
    nn.init.zeros_(model.weight)
    early.update(model, step=0)
    assert early.values["weight"].item() == pytest.approx(0.1)


def test_frozen_parameters_have_no_average() -> None:
    model = nn.Linear(1, 1)
    model.bias.requires_grad_(False)
    assert set(WeightAverage(model, 0.5).values) == {"weight"}


def test_schedule_warms_up_and_decays_to_the_floor() -> None:
    factors = [cosine(step, 100, 10, floor=0.1) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == 1
    assert factors[9:] == sorted(factors[9:], reverse=True)
    assert factors[100] == pytest.approx(0.1)


def test_export_writes_weights_config_and_card(tmp_path: Path) -> None:
    weight = torch.arange(6.0).view(2, 3)
    export(tmp_path / "model", {"a": weight, "b": weight.T}, {"width": 3}, ["# model", "", "text"])
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert torch.equal(stored["a"], weight) and torch.equal(stored["b"], weight.T)
    assert json.loads((tmp_path / "model" / "config.json").read_text()) == {"width": 3}
    assert (tmp_path / "model" / "MODEL_CARD.md").read_text() == "# model\n\ntext\n"
