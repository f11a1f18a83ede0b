"""Checkpoints: whole or not at all, and of the same training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from rudalle_lib.errors import WeightsError
from rudalle_lib.training.checkpoints import (
    CURRENT,
    PREVIOUS,
    learnt_tensors,
    load_learnt,
    load_optimizer,
    optimizer_state,
    read_checkpoint,
    write_checkpoint,
)


def test_the_previous_checkpoint_is_kept(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path) is None
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, {"step": step, "weight": torch.full((3,), float(step))})
    state = read_checkpoint(tmp_path)
    assert state is not None and state["step"] == 3 and state["weight"].tolist() == [3, 3, 3]
    (tmp_path / CURRENT).unlink()
    state = read_checkpoint(tmp_path)
    assert state is not None and state["step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS]


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_a_torn_checkpoint_counts_as_absent(tmp_path: Path, kept: float) -> None:
    for step in (1, 2):
        write_checkpoint(tmp_path, {"step": step, "weight": torch.rand(100)})
    content = (tmp_path / CURRENT).read_bytes()
    (tmp_path / CURRENT).write_bytes(content[: int(kept * len(content))])
    state = read_checkpoint(tmp_path)
    assert state is not None and state["step"] == 1
    write_checkpoint(tmp_path, {"step": 2})  # must not put the torn one in the place of the first
    (tmp_path / CURRENT).unlink()
    state = read_checkpoint(tmp_path)
    assert state is not None and state["step"] == 1


def test_a_crash_while_writing_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, {"step": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(tmp_path, {"step": 2})
    state = read_checkpoint(tmp_path)
    assert state is not None and state["step"] == 1


def test_frozen_and_shared_parameters_are_stored_once_or_not_at_all() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    model[2].weight = model[1].weight = nn.Parameter(torch.ones(2))
    assert set(learnt_tensors(model)) == {
        "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked", "2.bias",
    }  # fmt: skip


def test_tensors_of_another_training_are_refused() -> None:
    tensors = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
    with pytest.raises(WeightsError, match=r"work/checkpoint.pt is of another training: 2 tensors"):
        load_learnt(nn.Linear(2, 2), tensors, "work/checkpoint.pt")


def test_optimizers_go_on_where_they_were_with_new_settings() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    first = torch.optim.AdamW(one.parameters(), lr=0.1)
    one(torch.ones(1, 2)).sum().backward()
    first.step()
    second = torch.optim.AdamW(other.parameters(), lr=0.2)
    load_optimizer(second, optimizer_state(first))
    assert second.param_groups[0]["lr"] == 0.2
    for mine, theirs in zip(other.parameters(), one.parameters(), strict=True):
        assert torch.equal(second.state[mine]["exp_avg"], first.state[theirs]["exp_avg"])
        assert second.state[mine]["step"] == 1
