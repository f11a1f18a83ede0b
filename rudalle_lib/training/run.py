"""Shared by all training runs: log, crash-safe checkpoints, schedules, weight averages, export."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save
from torch import Tensor, nn

SAVE_SECONDS = 120
"""Minimum time between two checkpoints."""


class Stateful(Protocol):
    """Anything that a checkpoint can store: networks, optimizers, averages."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state to store."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Restore a stored state."""


class TrainingRun:
    """A work folder with `train.log` and one checkpoint to resume from, `checkpoint.pt`.

    Args:
        folder: the work folder; created if missing.
        parts: what the checkpoint stores, by name.
    """

    def __init__(self, folder: Path, **parts: Stateful) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.parts = parts
        self.checkpoint = folder / "checkpoint.pt"
        self.minutes_before = 0.0
        self._started = self._saved = time.monotonic()
        self._log = folder / "train.log"

    @property
    def minutes(self) -> float:
        """Minutes of training so far, including those before a resume."""
        return self.minutes_before + (time.monotonic() - self._started) / 60

    def log(self, **figures: object) -> None:
        """Write one line of `key value` pairs to the log and to stderr."""
        parts = [f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items()]
        clock = time.strftime("%H:%M:%S")
        line = f"{clock} {self.minutes:5.1f} min  {'  '.join(parts)}"
        with self._log.open("a") as log:
            print(line, file=log)
        print(line, file=sys.stderr)

    def resume(self) -> int:
        """Restore all parts from the checkpoint, if there is one; return the next step."""
        if not self.checkpoint.exists():
            return 0
        state: dict[str, Any] = torch.load(self.checkpoint, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.minutes_before = state["minutes"]
        self.log(resumed_at=state["step"])
        return int(state["step"])

    def save(self, step: int, last: bool) -> None:
        """Replace the checkpoint after the last step, or if `SAVE_SECONDS` have passed."""
        if not last and time.monotonic() - self._saved < SAVE_SECONDS:
            return
        self._saved = time.monotonic()
        fresh = self.checkpoint.with_suffix(".new")
        state = {name: part.state_dict() for name, part in self.parts.items()}
        torch.save({"step": step, "minutes": self.minutes, **state}, fresh)
        fresh.replace(self.checkpoint)


class WeightAverage:
    """Exponential moving average of the parameters of a network that learn.

    Args:
        model: the network.
        decay: share of the average kept at each step, 0 to 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in self._learnt(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the parameters. Early steps average over fewer steps."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        values = list(self.values.values())
        torch._foreach_lerp_(values, [p.detach() for p in self._learnt(model).values()], weight)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the averages and the parameters."""
        for name, parameter in self._learnt(model).items():
            parameters = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(parameters)

    @staticmethod
    def _learnt(model: nn.Module) -> dict[str, nn.Parameter]:
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    def averaged(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the model's state dict with averaged parameters."""
        return {**model.state_dict(), **self.values}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by name."""
        return self.values

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Restore the averages."""
        self.values = state_dict


def cosine(step: int, steps: int, warmup: int, floor: float = 0.03) -> float:
    """Return the learning-rate factor of a step: linear warm-up, then a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the same learning rate for all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def descend(
    loss: Tensor, parameters: Iterable[nn.Parameter], *optimizers: torch.optim.Optimizer
) -> None:
    """Take one optimization step, with the norm of the whole gradient clipped to 1."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer in optimizers:
        optimizer.step()


def export(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, object], card: Iterable[str]
) -> None:
    """Write a weights folder: `model.safetensors`, `config.json` and `MODEL_CARD.md`.

    Args:
        folder: the weights folder; created if missing.
        tensors: the weights by name.
        config: the architecture.
        card: lines of the model card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
    (folder / "model.safetensors").write_bytes(save(stored))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "MODEL_CARD.md").write_text("\n".join(card) + "\n")
