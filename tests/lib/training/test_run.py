"""Training runs: checkpoints, log, weight averages, schedules, clipped steps, export."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from rudalle_lib.training import run
from rudalle_lib.training.run import TrainingRun, WeightAverage, cosine, descend, export


def test_checkpoint_restores_all_parts(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    first = TrainingRun(tmp_path / "run", model=model, optimizer=optimizer)
    assert first.resume() == 0
    descend(model(torch.ones(1, 2)).sum(), model.parameters(), optimizer)
    first.save(7, last=True)

    other = nn.Linear(2, 2)
    other_optimizer = torch.optim.AdamW(other.parameters())
    second = TrainingRun(tmp_path / "run", model=other, optimizer=other_optimizer)
    assert second.resume() == 7
    assert second.minutes >= first.minutes_before
    assert torch.equal(model.weight, other.weight)
    assert len(other_optimizer.state) == len(optimizer.state) > 0
    assert "resumed_at 7" in (tmp_path / "run" / "train.log").read_text()


def test_checkpoints_are_limited_in_frequency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = TrainingRun(tmp_path, model=nn.Linear(1, 1))
    training.save(1, last=False)
    assert not training.checkpoint.exists()
    monkeypatch.setattr(run, "SAVE_SECONDS", 0)
    training.save(2, last=False)
    assert torch.load(training.checkpoint, weights_only=True)["step"] == 2
    assert [path.name for path in tmp_path.glob("checkpoint*")] == ["checkpoint.pt"]


def test_log_has_one_line_per_call(tmp_path: Path) -> None:
    training = TrainingRun(tmp_path / "logged")
    training.log(step=3, loss=0.123456789)
    (line,) = (tmp_path / "logged" / "train.log").read_text().splitlines()
    assert line.endswith("step 3  loss 0.12346")


def test_runs_of_folders_with_one_name_have_their_own_logs(tmp_path: Path) -> None:
    for parent in ("first", "second"):
        TrainingRun(tmp_path / parent / "work").log(name=parent)
        assert f"name {parent}" in (tmp_path / parent / "work" / "train.log").read_text()


def test_average_follows_the_parameters() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = WeightAverage(model, 0.5)
    nn.init.ones_(model.weight)
    average.update(model, step=1000)
    assert average.averaged(model)["weight"].item() == pytest.approx(0.5)
    average.update(model, step=1000)
    assert average.averaged(model)["weight"].item() == pytest.approx(0.75)
    early = WeightAverage(model, 0.999)
    nn.init.zeros_(model.weight)
    early.update(model, step=0)
    assert early.averaged(model)["weight"].item() == pytest.approx(0.1)


def test_schedule_warms_up_and_decays_to_the_floor() -> None:
    factors = [cosine(step, 100, 10, floor=0.1) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == 1
    assert factors[9:] == sorted(factors[9:], reverse=True)
    assert factors[100] == pytest.approx(0.1)


def test_gradients_are_clipped_together() -> None:
    weights = [nn.Parameter(torch.zeros(3)) for _ in range(2)]
    optimizer = torch.optim.SGD(weights, lr=1.0)
    descend(torch.stack([(100 * w).sum() for w in weights]).sum(), weights, optimizer)
    moved = torch.cat([w.detach() for w in weights])
    assert moved.norm().item() == pytest.approx(1, rel=1e-4)
    assert torch.allclose(moved, torch.full((6,), -1 / math.sqrt(6)), atol=1e-4)


def test_learning_rate_is_set_for_all_groups() -> None:
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [w], "lr": 1.0} for w in weights], lr=1.0)
    run.set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_export_writes_weights_config_and_card(tmp_path: Path) -> None:
    weight = torch.arange(6.0).view(2, 3)
    export(tmp_path / "model", {"a": weight, "b": weight.T}, {"width": 3}, ["# model", "", "text"])
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert torch.equal(stored["a"], weight) and torch.equal(stored["b"], weight.T)
    assert json.loads((tmp_path / "model" / "config.json").read_text()) == {"width": 3}
    assert (tmp_path / "model" / "MODEL_CARD.md").read_text() == "# model\n\ntext\n"
