"""What every training run shares: a log, checkpoints that survive a kill, schedules, averages."""

import json
import logging
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save
from torch import Tensor, nn

SAVE_SECONDS = 120


class Stateful(Protocol):
    """What a checkpoint can hold: networks, optimizers, averages."""

    def state_dict(self) -> dict[str, Any]:
        """Its state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Take up a state."""


class TrainingRun:
    """A working folder with `train.log` and one resumable checkpoint, `checkpoint.pt`.

    Args:
        folder: made where it does not exist.
        parts: by name in the checkpoint, what a resumed training goes on with.
    """

    def __init__(self, folder: Path, **parts: Stateful) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.parts = parts
        self.checkpoint = folder / "checkpoint.pt"
        self.minutes_before = 0.0
        self._started = self._saved = time.monotonic()
        self._log = logging.getLogger(f"{__name__}.{folder.name}")
        self._log.setLevel(logging.INFO)
        if not self._log.handlers:
            for handler in (logging.FileHandler(folder / "train.log"), logging.StreamHandler()):
                handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
                self._log.addHandler(handler)

    @property
    def minutes(self) -> float:
        """Minutes of training so far, those before a resume included."""
        return self.minutes_before + (time.monotonic() - self._started) / 60

    def log(self, **figures: object) -> None:
        """Write one line of `key value` figures."""
        parts = [f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items()]
        self._log.info("%5.1f min  %s", self.minutes, "  ".join(parts))

    def resume(self) -> int:
        """Bring all parts to the state of the last checkpoint; the step to go on with."""
        if not self.checkpoint.exists():
            return 0
        state: dict[str, Any] = torch.load(self.checkpoint, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.minutes_before = state["minutes"]
        self.log(resumed_at=state["step"])
        return int(state["step"])

    def save(self, step: int, last: bool) -> None:
        """Replace the checkpoint, after the last step or else every `SAVE_SECONDS` at most."""
        if not last and time.monotonic() - self._saved < SAVE_SECONDS:
            return
        self._saved = time.monotonic()
        fresh = self.checkpoint.with_suffix(".new")
        state = {name: part.state_dict() for name, part in self.parts.items()}
        torch.save({"step": step, "minutes": self.minutes, **state}, fresh)
        fresh.replace(self.checkpoint)


class WeightAverage:
    """Exponential moving average of a network's parameters."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the parameters; early steps average over less."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        values = list(self.values.values())
        torch._foreach_lerp_(values, [p.detach() for _, p in model.named_parameters()], weight)

    def averaged(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's state dict with averaged parameters."""
        return {**model.state_dict(), **self.values}

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by name."""
        return self.values

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Go on from averages."""
        self.values = state_dict


def cosine(step: int, steps: int, warmup: int, floor: float = 0.03) -> float:
    """Learning-rate factor: linear warm-up, then a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def descend(
    loss: Tensor, parameters: Iterable[nn.Parameter], *optimizers: torch.optim.Optimizer
) -> None:
    """One step down a loss, the gradient of all `parameters` together no longer than 1."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer in optimizers:
        optimizer.step()


def export(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, object], card: Iterable[str]
) -> None:
    """Write `model.safetensors`, `config.json` and `MODEL_CARD.md` into a weights folder."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
    (folder / "model.safetensors").write_bytes(save(stored))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "MODEL_CARD.md").write_text("\n".join(card) + "\n")
