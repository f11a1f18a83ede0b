"""Reading golden files: what the reference was given, what it answered, and with which weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.parity.random_weights import random_state

GOLDENS = Path(__file__).resolve().parent.parent / "data" / "parity"


@dataclass(frozen=True)
class Golden:
    """One golden file."""

    shapes: dict[str, list[int]]
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def state(self, seed: int) -> dict[str, Tensor]:
        """The reference's state dict: random weights, and the constants kept in the file."""
        stored = {key: value for key, value in self.tensors.items() if key in self.shapes}
        drawn = {key: shape for key, shape in self.shapes.items() if key not in stored}
        return {**random_state(drawn, seed), **stored}


def load_golden(name: str) -> Golden:
    """Read `tests/data/parity/<name>.npz`."""
    with np.load(GOLDENS / f"{name}.npz") as file:
        arrays = dict(file)
    texts = {key: json.loads(str(arrays.pop(key))) for key in ("shapes", "config")}
    tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
    return Golden(texts["shapes"], texts["config"], tensors)


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Equal shapes, and no value farther off than the tolerance."""
    assert found.shape == expected.shape
    worst = (found - expected).abs().max().item()
    assert worst <= tolerance, f"farthest value is {worst:.2e} off"
