"""Stateless sampling noise: a hash of image seed, step and token id.

There is no generator with a state, so an image gets the same noise in any batch, on any device and
in any order, and each value can be computed on its own.

Source: the mixing function of SplitMix64, Steele et al., "Fast splittable pseudorandom number
generators", OOPSLA 2014; used as a counter-based generator as in Salmon et al., SC 2011.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rudalle_lib import kernels
from rudalle_lib.kernels.abi import GumbelArgmaxArgs


def _as_int64(number: int) -> int:
    """A Python integer wrapped around to int64."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


GOLDEN_GAMMA = _as_int64(0x9E3779B97F4A7C15)
FIRST_FACTOR = _as_int64(0xBF58476D1CE4E5B9)
SECOND_FACTOR = _as_int64(0x94D049BB133111EB)
"""The constants of SplitMix64."""

WORK_OF_NOISE = 16
"""Cost of the noise of one token, in numbers that could be read from memory meanwhile."""


def _shift_right(bits: Tensor, by: int) -> Tensor:
    """Logical right shift into a new tensor; the shift of torch repeats the sign bit."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)


def _mix(bits: Tensor) -> Tensor:
    """The finaliser of SplitMix64 on int64: every input bit affects every output bit."""
    bits = _shift_right(bits, 30).bitwise_xor_(bits).mul_(FIRST_FACTOR)
    bits = _shift_right(bits, 27).bitwise_xor_(bits).mul_(SECOND_FACTOR)
    return _shift_right(bits, 31).bitwise_xor_(bits)


def gumbel_noise(seeds: Tensor, step: int | Tensor, vocab_size: int) -> Tensor:
    """Gumbel noise for one step of a batch.

    Args:
        seeds: int64 [B], one per image.
        step: the number of the image token to draw; int64 [B] if it differs between rows.
        vocab_size: the number of tokens V; their ids are 0 to V - 1.

    Returns:
        float32 [B, V], independent standard Gumbel variates. They are computed in float64, so that
        rounding removes the last bits of logarithms, which may differ between devices.
    """
    stream = _streams(seeds, step)
    tokens = torch.arange(1, vocab_size + 1, device=seeds.device)
    bits = _mix(stream[:, None] + GOLDEN_GAMMA * tokens)  # [B, V]
    uniform = _shift_right(bits, 12).double().add_(0.5).mul_(2.0**-52)  # strictly in (0, 1)
    return uniform.log_().neg_().log_().neg_().float()


def gumbel_argmax(logits: Tensor, min_logit: Tensor, seeds: Tensor, step: int | Tensor) -> Tensor:
    """Sample a token from the softmax of each row, among the largest logits.

    Args:
        logits: float32 [B, V].
        min_logit: float32 [B, 1]; tokens with smaller logits are excluded.
        seeds: int64 [B], as in `gumbel_noise`.
        step: as in `gumbel_noise`.

    Returns:
        int64 [B], the token with the largest sum of logit and noise.
    """
    if logits.device.type == "cpu" and kernels.is_available():
        return _compiled_argmax(logits.contiguous(), min_logit.contiguous(), _streams(seeds, step))
    noisy = gumbel_noise(seeds, step, logits.shape[1]).add_(logits)
    return noisy.masked_fill_(logits < min_logit, -torch.inf).argmax(dim=1)


def _streams(seeds: Tensor, step: int | Tensor) -> Tensor:
    """The start of the noise of each row, int64 [B]."""
    offset = GOLDEN_GAMMA * (step + 1)
    return _mix(seeds + (_as_int64(offset) if isinstance(offset, int) else offset))


def _compiled_argmax(logits: Tensor, min_logit: Tensor, streams: Tensor) -> Tensor:
    """`gumbel_argmax` in one pass; see `kernels/csrc/gumbel_argmax.cpp`."""
    chosen = torch.empty(len(logits), dtype=torch.int64)
    tensors = (streams, logits, min_logit, chosen)
    args = GumbelArgmaxArgs(*logits.shape, *(tensor.data_ptr() for tensor in tensors))
    work = WORK_OF_NOISE * logits.numel()
    kernels.operation("gumbel_argmax", logits.dtype, args, work, *tensors).run()
    return chosen
