"""Random weights that need not be stored: any machine makes the same ones from key names.

A golden file holds the reference network's keys and shapes, its inputs and its outputs; the
checkpoint itself is made again from them. Used on both sides: by the scripts that run the
reference implementations, and by the tests.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

Shapes = Mapping[str, Sequence[int]]


NEAR_ONE = ("weight", "logit_scale", "running_var")
"""Ends of the keys of vectors that scale, or that something is divided by."""


def random_state(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Tensors float32 of the given shapes, each a function of its key, its shape and the seed."""
    return {key: random_tensor(key, tuple(shape), seed) for key, shape in shapes.items()}


def random_tensor(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Uniform weights that keep activations near 1; norms near 1, biases near 0, counters 0."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    # PCG64's raw integers are the one stream that numpy promises never to change.
    raw = np.random.PCG64(zlib.crc32(f"{seed}:{key}".encode())).random_raw(math.prod(shape))
    uniform = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0  # [-1, 1)
    values = torch.from_numpy(uniform).float().reshape(shape)
    if len(shape) > 1:
        return values * math.sqrt(3.0 / math.prod(shape[1:]))
    return 1.0 + 0.3 * values if key.endswith(NEAR_ONE) else 0.2 * values
