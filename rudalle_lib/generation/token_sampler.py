"""Sampling the next token of each row, with settings of its own.

Tokens are sampled with the Gumbel-max trick: the argmax of logits plus Gumbel noise is a sample of
their softmax.

Source: top-p after Holtzman et al., arXiv:1904.09751.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from rudalle_lib.errors import SettingsError
from rudalle_lib.generation.guidance import NO_GUIDANCE
from rudalle_lib.generation.noise import gumbel_argmax
from rudalle_lib.schema.ranges import RANGES

DRAW = -1
"""Marks a token to be drawn, among given tokens."""


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are sampled.

    Args:
        temperature: divisor of the logits, above 0 and at most 100.
        top_k: sample only from the k most likely tokens; 0 is all.
        top_p: sample only from the most likely tokens up to this total probability, above 0 and at
            most 1.
        guidance: scale of classifier-free guidance, from 0 to 100; applied to the logits first. 1
            is off; any other value doubles the time.

    Raises:
        SettingsError: a value is out of range (see `schema.ranges`).
    """

    temperature: float = 1.0
    top_k: int = 2048
    top_p: float = 0.995
    guidance: float = NO_GUIDANCE

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, value in asdict(self).items():
            allowed = RANGES[name]
            if value not in allowed or (allowed.kind is int and not isinstance(value, int)):
                raise SettingsError(f"{name}: expected {allowed}, found {value!r}")


class TokenSampler:
    """Samples the next token of each row of a batch.

    Args:
        settings: one per row.
        seeds: int64 [B], one per row, on the device of the logits.
    """

    def __init__(self, settings: Sequence[SamplingSettings], seeds: Tensor) -> None:
        device = seeds.device
        self._seeds = seeds
        self._temperature = torch.tensor([row.temperature for row in settings], device=device)
        self._top_k = torch.tensor([row.top_k for row in settings], device=device)
        self._top_p = torch.tensor([row.top_p for row in settings], device=device)
        self._max_top_k = max(row.top_k for row in settings)
        self._all_tokens = any(row.top_k == 0 for row in settings)
        self._any_nucleus = any(row.top_p < 1 for row in settings)

    def sample(self, logits: Tensor, step: int | Tensor) -> Tensor:
        """Sample a token per row.

        Args:
            logits: float32 [B, V].
            step: the number of the token; int64 [B] if it differs between rows.

        Returns:
            int64 [B].
        """
        logits = logits / self._temperature[:, None]
        return gumbel_argmax(logits, self._min_logit(logits), self._seeds, step)

    def _min_logit(self, logits: Tensor) -> Tensor:
        """The smallest logit that top-k and top-p keep, [B, 1]. Equal logits are kept together."""
        vocab_size = logits.shape[1]
        width = vocab_size if self._all_tokens else min(self._max_top_k, vocab_size)
        if width == vocab_size and not self._any_nucleus:
            return logits.amin(dim=1, keepdim=True)
        best = _largest(logits, width)
        kept = torch.where(self._top_k == 0, vocab_size, self._top_k).clamp(max=width)[:, None]
        outside = torch.arange(width, device=logits.device) >= kept
        mass = best.masked_fill(outside, -torch.inf).softmax(dim=1)
        top_p = self._top_p[:, None]
        in_nucleus = (mass.cumsum(dim=1) - mass <= top_p) | (top_p == 1)
        kept = torch.minimum(kept, in_nucleus.sum(dim=1, keepdim=True)).clamp(min=1)
        return best.gather(1, kept - 1)


def _largest(values: Tensor, count: int) -> Tensor:
    """The largest values of each row in descending order: [B, V] -> [B, count].

    On the CPU, numpy takes a fifth of the time of `torch.topk`.
    """
    if values.device.type != "cpu":
        return values.topk(count).values
    largest = values.numpy()
    if count < largest.shape[1]:
        largest = np.partition(largest, -count, axis=1)[:, -count:]
    return torch.from_numpy(np.sort(largest, axis=1)[:, ::-1].copy())
