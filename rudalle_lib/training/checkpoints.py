"""Checkpoints of a training: written whole or not at all, and the one before is kept.

A checkpoint holds what changes while a network learns: the parameters that learn, buffers, the
state of optimizers and of the average of the weights, and how far the training is. Frozen weights
are not in it. Tensors that FSDP has spread over processes are stored whole, so a training can go
on with another number of processes. All processes read the same folder.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from rudalle_lib.errors import TrainingError, WeightsError
from rudalle_lib.storage.local_files import whole_file

CURRENT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
"""The newest checkpoint of a work folder, and the one before it."""

State = dict[str, Any]
"""What a checkpoint stores: tensors and numbers, by name."""


def write_atomically(value: object, path: Path) -> None:
    """Write a file with `torch.save`: after a crash there is the old one, or the new one whole."""
    with whole_file(path) as fresh:
        torch.save(value, fresh)


def write_checkpoint(folder: Path, state: State) -> None:
    """Write the newest checkpoint of a work folder; the last one becomes the previous one."""
    current = folder / CURRENT
    if read_file(current) is not None:  # a torn one must not replace the one before it
        current.replace(folder / PREVIOUS)
    write_atomically(state, current)


def read_checkpoint(folder: Path) -> State | None:
    """Return the newest whole checkpoint of a work folder, or None if there is none."""
    for name in (CURRENT, PREVIOUS):
        if (state := read_file(folder / name)) is not None:
            return state
    return None


def read_file(path: Path) -> State | None:
    """Read a file of `write_atomically`; None if it is missing, empty or torn."""
    try:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError):
        return None
    return state if isinstance(state, dict) else None


# --- tensors that may be spread over processes -------------------------------------------------


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor whole and on the CPU; all processes must ask for it if it is spread."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def spread_like(value: Tensor, like: Tensor) -> Tensor:
    """Spread a whole tensor over the processes as another of its shape is."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def learnt_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that learn and the stored buffers of a network, by name."""
    stored = model.state_dict(keep_vars=True)
    names = {id(tensor): name for name, tensor in reversed(stored.items())}
    return {
        name: tensor
        for name, tensor in stored.items()
        if names[id(tensor)] == name
        and (tensor.requires_grad or not isinstance(tensor, nn.Parameter))
    }


def read_learnt(path: Path) -> dict[str, Tensor]:
    """Read the tensors of `trainer.Trained.weights`, on the CPU, for `load_learnt`.

    Raises:
        TrainingError: the file is missing or damaged.
    """
    if (tensors := read_file(path)) is None:
        raise TrainingError(f"{path} is missing or damaged; train again with the same work folder")
    return tensors


@torch.no_grad()
def load_learnt(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors by the names of `learnt_tensors` into a network.

    Args:
        model: the network, changed in place.
        tensors: whole tensors.
        source: where they are from, for the message.

    Raises:
        WeightsError: names or shapes are not those of the network.
    """
    targets = learnt_tensors(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in targets.items()}
    if different := sorted(set(shapes.items()) ^ set(expected.items())):
        raise WeightsError(
            f"{source} is of another training: {len(different)} tensors differ, the first is "
            f"{different[0][0]}. Use another work folder, or delete this one to start again"
        )
    for name, target in targets.items():
        target.copy_(spread_like(tensors[name], target))


def optimizer_state(optimizer: torch.optim.Optimizer) -> State:
    """Return the state of an optimizer by the number of the parameter, with whole tensors."""
    return {
        str(number): {
            name: whole(value) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for number, values in optimizer.state_dict()["state"].items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Restore what `optimizer_state` returned; settings such as the learning rate stay."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    spread = {
        int(number): {
            name: spread_like(value, parameters[int(number)])
            if isinstance(value, Tensor) and value.shape == parameters[int(number)].shape
            else value
            for name, value in values.items()
        }
        for number, values in state.items()
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": spread, "param_groups": groups})
