"""The noise of the drawing kernel alone, to compare its bits with those of the CPU."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rudalle_lib.models.gpu.draw_token import gumbel


def noise(out: Tensor, seeds: Tensor, places: Tensor) -> None:
    """Fill float32 [R, V] with the noise of seeds and places, int64 [R]."""
    rows, vocab_size = out.shape
    noise_kernel[(rows,)](out, seeds, places, vocab_size, BLOCK=triton.next_power_of_2(vocab_size))


@triton.jit
def noise_kernel(out, seeds, places, V, BLOCK: tl.constexpr):
    """One program per row."""
    row, tokens = tl.program_id(0), tl.arange(0, BLOCK)
    seed, place = tl.load(seeds + row).to(tl.uint64), tl.load(places + row).to(tl.uint64)
    tl.store(out + row * V + tokens, gumbel(seed, place, tokens.to(tl.uint64)), mask=tokens < V)
