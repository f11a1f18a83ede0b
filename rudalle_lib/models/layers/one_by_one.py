"""Processing images one at a time on a CPU.

For image networks this is not slower than a batch: one image keeps all cores busy, and its tensors
reuse memory that the process already has, while those of a batch get fresh pages from the operating
system in every layer. It also makes the results batch-invariant to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def one_by_one(network: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Apply a network to inputs [B, ...]: on a CPU one at a time, on other devices as a batch."""
    if inputs.device.type != "cpu" or len(inputs) < 2:
        return network(inputs)
    return torch.cat([network(single) for single in inputs.split(1)])
