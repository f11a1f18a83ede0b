"""Random weights that depend only on key names, so that they need not be stored.

A golden file holds the keys and shapes of the reference network, its inputs and its outputs. The
checkpoint is recreated from keys and shapes. Both the scripts that run the reference
implementations and the tests use this module.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

Shapes = Mapping[str, Sequence[int]]
"""Shapes by key of the state dict."""

NEAR_ONE = ("weight", "logit_scale", "running_var")
"""Endings of the keys of vectors that scale or divide, whose values are near 1."""


def random_state(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Return float32 tensors of the given shapes, determined by key, shape and seed."""
    return {key: random_tensor(key, tuple(shape), seed) for key, shape in shapes.items()}


def random_tensor(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return uniform weights that keep activations near 1; norms near 1, biases near 0."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    # numpy guarantees that PCG64's raw integers never change; other streams may.
    raw = np.random.PCG64(zlib.crc32(f"{seed}:{key}".encode())).random_raw(math.prod(shape))
    uniform = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0  # [-1, 1)
    values = torch.from_numpy(uniform).float().reshape(shape)
    if len(shape) > 1:
        return values * math.sqrt(3.0 / math.prod(shape[1:]))
    return 1.0 + 0.3 * values if key.endswith(NEAR_ONE) else 0.2 * values
