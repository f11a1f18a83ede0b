"""Drawing the next token of each image in one Triton kernel, without sorting.

It computes what `TokenSampler` computes: guidance, temperature, top-k, top-p, the noise of
`generation.noise`, the argmax, and the log-probability of the token. A program draws for one row.

- Top-k: floats are mapped to integers of the same order, and the k-th largest is found bit by bit,
  in 32 counts of how many are at least as large as a candidate.
- Top-p: probabilities are mapped to whole numbers, whose sum does not depend on its order, and the
  smallest kept logit is found the same way. Equal logits are kept together.
- Noise: SplitMix64 of seed, place and token; its logarithms are computed in float64, so that the
  rounded noise does not depend on the device.
- Not a number: a NaN is never drawn, but the log-probability of the token is NaN then, which
  `generate_tokens` reports.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rudalle_lib.models.gpu.draw_settings import Drawn, DrawSettings

GOLDEN_GAMMA = tl.constexpr(0x9E3779B97F4A7C15)
FIRST_FACTOR = tl.constexpr(0xBF58476D1CE4E5B9)
SECOND_FACTOR = tl.constexpr(0x94D049BB133111EB)
"""The constants of SplitMix64, as in `generation.noise`."""

WHOLE = tl.constexpr(float(2**40))
"""The mass of the likeliest token. Sums of up to 2^23 such masses fit into int64."""

TOP_BIT, ALL_BITS = tl.constexpr(0x80000000), tl.constexpr(0xFFFFFFFF)
"""The highest bit of 32, and all of them."""


def draw(logits: Tensor, settings: DrawSettings, step: Tensor, drawn: Drawn) -> None:
    """Draw one token for each image.

    Args:
        logits: [R, V], contiguous.
        settings: of the rows.
        step: int32 [1], the number of the token in its image.
        drawn: tokens, log-probabilities and latest tokens, of which one column is written.
    """
    rows, vocab_size = logits.shape
    block = triton.next_power_of_2(vocab_size)
    draw_token[(rows,)](
        logits, *settings, step, *drawn, vocab_size, drawn.tokens.shape[1], BLOCK=block,
        num_warps=warps(block), enable_fp_fusion=False,
    )  # fmt: skip


def warps(block: int) -> int:
    """Warps of a program: 16 numbers per thread for a vocabulary of 8,192."""
    return min(max(block // 512, 1), 16)


@triton.jit
def _mix(bits):
    """The finaliser of SplitMix64 on uint64."""
    bits = ((bits >> 30) ^ bits) * FIRST_FACTOR
    bits = ((bits >> 27) ^ bits) * SECOND_FACTOR
    return (bits >> 31) ^ bits


@triton.jit
def gumbel(seed, place, tokens):
    """`generation.noise.gumbel_noise`: uint64 scalars and uint64 [BLOCK] -> float32 [BLOCK]."""
    stream = _mix(seed + (place + 1) * GOLDEN_GAMMA)
    bits = _mix(stream + (tokens + 1) * GOLDEN_GAMMA)
    uniform = ((bits >> 12).to(tl.float64) + 0.5) * (1.0 / 4503599627370496.0)
    return (-tl.log(-tl.log(uniform))).to(tl.float32)


@triton.jit
def _kth_largest(order, k):
    """The k-th largest of uint32 [BLOCK]: the largest number that at least k of them reach."""
    found = tl.zeros([], tl.uint32)
    bit = tl.full([], TOP_BIT, tl.uint32)
    for _ in range(32):
        candidate = found | bit
        reached = tl.sum((order >= candidate).to(tl.int32), axis=0)
        found = tl.where(reached >= k, candidate, found)
        bit = bit >> 1
    return found


@triton.jit
def _smallest_in_nucleus(order, mass, limit):
    """The smallest uint32 above which there is a mass of at most `limit`."""
    found = tl.zeros([], tl.uint32)
    bit = tl.full([], TOP_BIT, tl.uint32)
    for _ in range(32):
        candidate = found + (bit - 1)
        above = tl.sum(tl.where(order > candidate, mass, 0), axis=0)
        found = tl.where(above <= limit, found, found + bit)
        bit = bit >> 1
    return found


@triton.jit
def _smallest_kept(scaled, inside, top_k, top_p):
    """What is kept by top-k and top-p: the order of the logits and the smallest one, uint32."""
    bits = scaled.to(tl.uint32, bitcast=True)
    order = tl.where(bits >= TOP_BIT, bits ^ ALL_BITS, bits | TOP_BIT)  # grows with the logit
    order = tl.where(inside, order, 0)
    kth = _kth_largest(order, top_k)
    mass = (tl.exp(scaled - tl.max(scaled, axis=0)) * WHOLE).to(tl.int64)
    mass = tl.where(inside, mass, 0)
    # Of logits equal to the k-th largest, only as many count as top-k has room for.
    above = order > kth
    room = (top_k - tl.sum(above.to(tl.int32), axis=0)).to(tl.int64)
    total = tl.sum(tl.where(above, mass, 0), axis=0)
    total += room * tl.max(tl.where(order == kth, mass, 0), axis=0)
    limit = tl.where(
        top_p >= 1.0, total, (total.to(tl.float64) * top_p.to(tl.float64)).to(tl.int64)
    )
    mass = tl.where(order >= kth, mass, 0)
    return order, tl.maximum(_smallest_in_nucleus(order, mass, limit), kth)


@triton.jit
def draw_token(
    logits, temperature, top_k, top_p, guidance, empty_row, seeds, places, given,
    step_at, tokens, logprobs, latest, V, L, BLOCK: tl.constexpr,
):  # fmt: skip
    """The kernel of `draw`; grid [rows]."""
    row = tl.program_id(0).to(tl.int64)
    empty = tl.load(empty_row + row).to(tl.int64)
    if empty == -2:  # NO_IMAGE
        return
    step = tl.load(step_at)
    c = tl.arange(0, BLOCK)
    inside = c < V
    raw = tl.load(logits + row * V + c, mask=inside, other=float("-inf")).to(tl.float32)
    highest = tl.max(tl.where(raw == raw, raw, float("-inf")), axis=0)
    logsumexp = tl.log(tl.sum(tl.exp(raw - highest), axis=0)) + highest

    unconditional = tl.load(logits + empty * V + c, mask=inside & (empty >= 0), other=0.0)
    unconditional = unconditional.to(tl.float32)
    pushed = unconditional + tl.load(guidance + row) * (raw - unconditional)
    scaled = tl.math.div_rn(tl.where(empty >= 0, pushed, raw), tl.load(temperature + row))
    scaled = tl.where(inside & (scaled == scaled), scaled, float("-inf"))  # NaN is never drawn
    scaled = tl.where(scaled == 0.0, 0.0, scaled)  # -0 equals 0

    k = tl.load(top_k + row)
    k = tl.where(k == 0, V, tl.minimum(k, V))
    order, smallest = _smallest_kept(scaled, inside, k, tl.load(top_p + row))
    seed = tl.load(seeds + row).to(tl.uint64)
    place = tl.load(places + row * L + step).to(tl.uint64)
    noisy = scaled + gumbel(seed, place, c.to(tl.uint64))
    noisy = tl.where((order >= smallest) & inside, noisy, float("-inf"))
    token = tl.argmax(noisy, axis=0, tie_break_left=True).to(tl.int64)

    fixed = tl.load(given + row * L + step)
    token = tl.where(fixed < 0, token, fixed)
    logprob = tl.load(logits + row * V + token).to(tl.float32) - logsumexp
    tl.store(tokens + row * L + step, token)
    tl.store(logprobs + row * L + step, logprob)
    tl.store(latest + row, token)
    if empty >= 0:
        tl.store(latest + empty, token)
