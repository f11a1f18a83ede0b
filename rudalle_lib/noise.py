"""Sampling noise that is computed, not drawn: a hash of (image seed, step, token id).

No generator has a state, so an image gets the same noise in any batch, on any device, in any
order, and any single value can be had on its own.

Source: the mixing function of SplitMix64, Steele et al., "Fast splittable pseudorandom number
generators", OOPSLA 2014; used as a counter-based generator as in Salmon et al., SC 2011.
"""

import ctypes

import torch
from torch import Tensor

from rudalle_lib.models import native


class _Draw(ctypes.Structure):
    _fields_ = (
        *native.numbers("rows", "candidates"),
        *native.addresses("streams", "logits", "least", "chosen"),
    )


def _as_int64(number: int) -> int:
    """A Python integer as int64 arithmetic has it, wrapped around."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


GOLDEN_GAMMA = _as_int64(0x9E3779B97F4A7C15)
FIRST_FACTOR = _as_int64(0xBF58476D1CE4E5B9)
SECOND_FACTOR = _as_int64(0x94D049BB133111EB)

WORK_OF_NOISE = 16
"""How many numbers could be read while noise for one candidate is worked out."""


def _shift_right(bits: Tensor, by: int) -> Tensor:
    """Logical shift, a new tensor; torch's own repeats the sign bit."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)


def _mix(bits: Tensor) -> Tensor:
    """SplitMix64's finaliser: every input bit moves every output bit. int64, wraps around."""
    bits = _shift_right(bits, 30).bitwise_xor_(bits).mul_(FIRST_FACTOR)
    bits = _shift_right(bits, 27).bitwise_xor_(bits).mul_(SECOND_FACTOR)
    return _shift_right(bits, 31).bitwise_xor_(bits)


def gumbel_noise(seeds: Tensor, step: int | Tensor, vocab_size: int) -> Tensor:
    """Gumbel noise for one step of a batch.

    Args:
        seeds: int64 [B], one an image.
        step: number of the image token that is being drawn; int64 [B] where each row has its own.
        vocab_size: number of candidates V, token ids 0 ... V - 1.

    Returns:
        float32 [B, V]: independent standard Gumbel variates. They are worked out in float64, where
        the last bit of a logarithm, which may differ between devices, is rounded away.
    """
    stream = _streams(seeds, step)
    tokens = torch.arange(1, vocab_size + 1, device=seeds.device)
    bits = _mix(stream[:, None] + GOLDEN_GAMMA * tokens)  # [B, V]
    uniform = _shift_right(bits, 12).double().add_(0.5).mul_(2.0**-52)  # strictly in (0, 1)
    return uniform.log_().neg_().log_().neg_().float()


def gumbel_argmax(logits: Tensor, least: Tensor, seeds: Tensor, step: int | Tensor) -> Tensor:
    """Draw from the softmax of each row, of the candidates that are allowed.

    Args:
        logits: float32 [B, V].
        least: float32 [B, 1]; smaller logits are left out.
        seeds: int64 [B], as for `gumbel_noise`.
        step: the same.

    Returns:
        int64 [B], the candidate whose logit plus noise is the largest.
    """
    if logits.device.type == "cpu" and native.is_compiled():
        return _compiled_argmax(logits.contiguous(), least.contiguous(), _streams(seeds, step))
    noisy = gumbel_noise(seeds, step, logits.shape[1]).add_(logits)
    return noisy.masked_fill_(logits < least, -torch.inf).argmax(dim=1)


def _streams(seeds: Tensor, step: int | Tensor) -> Tensor:
    """Where the noise of each row starts, int64 [B]."""
    after = GOLDEN_GAMMA * (step + 1)
    return _mix(seeds + (_as_int64(after) if isinstance(after, int) else after))


def _compiled_argmax(logits: Tensor, least: Tensor, streams: Tensor) -> Tensor:
    """In one pass: see `models/native/gumbel_argmax.cpp`."""
    chosen = torch.empty(len(logits), dtype=torch.int64)
    tensors = (streams, logits, least, chosen)
    draw = _Draw(*logits.shape, *(tensor.data_ptr() for tensor in tensors))
    work = WORK_OF_NOISE * logits.numel()
    native.operation("gumbel_argmax", logits.dtype, draw, work, *tensors).run()
    return chosen
