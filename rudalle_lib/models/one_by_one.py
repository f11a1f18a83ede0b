"""Pictures one after another on a CPU.

There a network of pictures is no slower so: one picture keeps all cores busy, and its tensors stay
in memory that the process has already, where those of a batch are given fresh pages by the system
with every layer. And a picture does not depend on its company, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def one_by_one(network: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """What the network makes of inputs [B, ...]: on a CPU of one at a time, elsewhere of all."""
    if inputs.device.type != "cpu" or len(inputs) < 2:
        return network(inputs)
    return torch.cat([network(one) for one in inputs.split(1)])
