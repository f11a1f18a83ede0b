"""The end of a branch and the start of the next one in one Triton kernel.

`hidden += norm(branch)`, then `normalised = next_norm(hidden)`. A program computes a row. Sums are
in float32, and each result is rounded once. What the next product takes in 8 bits is rounded to
them here, from the same numbers as it would be later.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, nn

from rudalle_lib.models.layers.triton_int8 import inverse_of, levels_of, sizes_of, step_of
from rudalle_lib.models.layers.triton_support import RoundedRows

MAX_FLOAT16 = 65504.0
"""Largest float16; in that dtype branches are limited to it, as in `SelfAttention`."""


def add_and_normalise(
    hidden: Tensor,
    branch: Tensor,
    norm: nn.Module,
    next_norm: nn.LayerNorm,
    normalised: Tensor | RoundedRows,
) -> None:
    """Add a branch to the hidden states and normalise them for the next branch.

    Args:
        hidden: [R, C], updated in place.
        branch: [R, C].
        norm: the sandwich norm of the branch; an `nn.Identity` adds the branch as it is.
        next_norm: of the next branch, or the final one.
        normalised: [R, C], overwritten.
    """
    rows, width = hidden.shape
    sandwich = isinstance(norm, nn.LayerNorm)
    first = norm if isinstance(norm, nn.LayerNorm) else next_norm
    block = triton.next_power_of_2(width)
    add_norms[(rows,)](
        hidden, branch, first.weight, first.bias, next_norm.weight, next_norm.bias,
        *written(normalised), width, first.eps, next_norm.eps,
        BLOCK=block, SANDWICH=sandwich, LIMIT=MAX_FLOAT16, num_warps=warps(block),
    )  # fmt: skip


def written(normalised: Tensor | RoundedRows) -> tuple[Tensor, Tensor | None]:
    """What a kernel writes: the rows or their levels, and the steps of levels if it does."""
    return normalised if isinstance(normalised, RoundedRows) else (normalised, None)


def warps(block: int) -> int:
    """Warps of a program: 8 numbers per thread, 16 bytes in bfloat16."""
    return min(max(block // 256, 1), 16)


@triton.jit
def layer_norm(x, weight, bias, c, inside, width, eps):
    """The layer norm of a row, [BLOCK] in float32."""
    gain = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / width
    centred = tl.where(inside, x - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / width
    return centred * (1.0 / tl.sqrt(variance + eps)) * gain + shift


@triton.jit
def store_row(values, normalised, step, row, c, inside, width):
    """Store a row, [BLOCK] in the dtype of the network, in 8 bits if there is a `step`."""
    if step is None:
        tl.store(normalised + row * width + c, values, mask=inside)
    else:
        exact = tl.where(inside, values.to(tl.float32), 0.0)
        size = step_of(tl.max(sizes_of(exact), axis=0))
        levels = levels_of(exact, inverse_of(size))
        tl.store(normalised + row * width + c, levels, mask=inside)
        tl.store(step + row, size)


@triton.jit
def add_norms(
    hidden, branch, weight, bias, next_weight, next_bias, normalised, step, width, eps, next_eps,
    BLOCK: tl.constexpr, SANDWICH: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    """The kernel of `add_and_normalise`; grid [rows]. `step` is None, or that of each row."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    inside = c < width
    at = row * width + c
    added = tl.load(branch + at, mask=inside, other=0.0).to(tl.float32)
    if branch.dtype.element_ty == tl.float16:
        added = tl.minimum(tl.maximum(added, -LIMIT), LIMIT)
    if SANDWICH:
        added = layer_norm(added, weight, bias, c, inside, width, eps)
    states = tl.load(hidden + at, mask=inside, other=0.0).to(tl.float32) + added
    rounded = states.to(hidden.dtype.element_ty)
    tl.store(hidden + at, rounded, mask=inside)
    output = layer_norm(rounded.to(tl.float32), next_weight, next_bias, c, inside, width, next_eps)
    store_row(output.to(hidden.dtype.element_ty), normalised, step, row, c, inside, width)
