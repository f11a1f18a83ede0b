"""Shared by trainings: the schedule of the learning rate, weight averages, export."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn


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
