"""Read golden files, which hold the inputs, outputs and weights of a reference network."""

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
"""Folder of the golden files."""


@dataclass(frozen=True)
class Golden:
    """The content of a golden file.

    Args:
        shapes: shape of each tensor of the reference's state dict.
        config: architecture and other settings.
        tensors: inputs, outputs and constants.
    """

    shapes: dict[str, list[int]]
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        """Return the tensor with this name."""
        return self.tensors[name]

    def state(self, seed: int) -> dict[str, Tensor]:
        """Return the reference's state dict: random weights, and constants from the file."""
        stored = {key: value for key, value in self.tensors.items() if key in self.shapes}
        random_shapes = {key: shape for key, shape in self.shapes.items() if key not in stored}
        return {**random_state(random_shapes, seed), **stored}


def load_golden(name: str) -> Golden:
    """Read `tests/data/parity/<name>.npz`."""
    with np.load(GOLDENS / f"{name}.npz") as file:
        arrays = dict(file)
    texts = {key: json.loads(str(arrays.pop(key))) for key in ("shapes", "config")}
    tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
    return Golden(texts["shapes"], texts["config"], tensors)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Check that shapes are equal and that all differences are within the tolerance."""
    assert actual.shape == expected.shape
    largest = (actual - expected).abs().max().item()
    assert largest <= tolerance, f"largest difference is {largest:.2e}, expected {tolerance:.2e}"
