"""Products with 8-bit weights on a GPU, in Triton.

A program computes a tile of the result. Weights are read as 8 bits and converted in registers, so a
step reads half the bytes of bfloat16. With inputs in 8 bits too, sums are exact in int32 and do not
depend on their order. In both cases the tile of a row does not depend on the other rows.

Inputs are rounded where that is cheapest: by the kernel that writes them if one program has the
whole row, while they are multiplied if only the largest value of a row is known, and otherwise by a
kernel of their own. All three give the same levels, bit for bit.

Weights are stored as in `int8_linear`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from rudalle_lib.models.layers.triton_support import BoundedRows, RoundedRows

OUTPUTS, INPUTS = 64, 128
"""Outputs of a tile, and inputs that it multiplies at a time."""

MAX_ROWS = 64
"""Rows of a tile, at most."""

WARPS, STAGES = 4, 3
"""Warps of a program, and tiles of weights that are loaded ahead plus one."""

MAX_LEVEL = tl.constexpr(127.0)
"""Level of the largest value of a row."""

MIN_STEP = tl.constexpr(1e-20)
"""Smallest step, so that a row of zeros stays zero."""

ROUND = tl.constexpr(12582912.0)
"""1.5 * 2^23: a float32 to which it is added has the nearest whole number in its lowest bits."""


def int8_linear(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, gelu: bool = False
) -> Tensor:
    """A linear layer with 8-bit weights.

    Args:
        x: [..., inputs].
        weight: int8 [outputs, inputs].
        scale: float32 [outputs].
        bias: [outputs].
        gelu: apply GELU in its tanh form to the result.

    Returns:
        [..., outputs] in the dtype of x.
    """
    rows = x.reshape(-1, x.shape[-1])
    output = x.new_empty(len(rows), len(weight))
    _multiply(output, rows, scale, weight, scale, bias, gelu)
    return output.view(*x.shape[:-1], len(weight))


def dynamic_int8_linear(
    x: Tensor | RoundedRows | BoundedRows,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    gelu: bool = False,
) -> Tensor:
    """A linear layer with 8-bit weights and inputs, each input row with its own step.

    Args:
        x: [..., inputs], or rows that are rounded already or while they are multiplied.
        weight: int8 [outputs, inputs].
        scale: float32 [outputs].
        bias: [outputs].
        gelu: apply GELU in its tanh form to the result.

    Returns:
        [..., outputs] in the dtype of x, for rounded rows in that of the bias.
    """
    if isinstance(x, Tensor):
        with _current(x):
            rounded = quantise(x.reshape(-1, x.shape[-1]))
        output = x.new_empty(len(rounded.levels), len(weight))
        _multiply(output, *rounded, weight, scale, bias, gelu)
        return output.view(*x.shape[:-1], len(weight))
    rows, of_row = x
    output = bias.new_empty(len(rows), len(weight))
    _multiply(output, rows, of_row, weight, scale, bias, gelu, isinstance(x, BoundedRows))
    return output


def quantise(x: Tensor) -> RoundedRows:
    """Round each row to 8 bits. x [rows, inputs]."""
    rows, inputs = x.shape
    rounded = RoundedRows(
        torch.empty(rows, inputs, dtype=torch.int8, device=x.device),
        torch.empty(rows, dtype=torch.float32, device=x.device),
    )
    block = triton.next_power_of_2(inputs)
    quantise_rows[(rows,)](
        x.contiguous(), *rounded, inputs, BLOCK=block, num_warps=min(max(block // 512, 1), 16)
    )
    return rounded


def row_tile(rows: int) -> int:
    """Rows of a tile: a power of two from 16 on."""
    return min(max(16, triton.next_power_of_2(rows)), MAX_ROWS)


def _current(x: Tensor) -> AbstractContextManager[object]:
    """Make the GPU of a tensor the current device, on which Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _multiply(
    output: Tensor,
    x: Tensor,
    step: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    gelu: bool,
    round_inputs: bool = False,
) -> None:
    rows, outputs = output.shape
    tile = row_tile(rows)
    grid = (triton.cdiv(outputs, OUTPUTS), triton.cdiv(rows, tile))
    dynamic = round_inputs or x.dtype is torch.int8
    with _current(x):
        int8_product[grid](
            output, x.contiguous(), step, weight, scale, bias, rows, outputs, weight.shape[1],
            ROWS=tile, OUTPUTS=OUTPUTS, INPUTS=INPUTS, DYNAMIC=dynamic, ROUND_INPUTS=round_inputs,
            GELU=gelu, num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip


@triton.jit
def sizes_of(values):
    """Absolute values of float32; that of NaN is infinite."""
    return tl.where(values == values, tl.abs(values), float("inf"))


@triton.jit
def step_of(largest):
    """The step of rows whose largest absolute value is this, float32."""
    return tl.maximum(tl.math.div_rn(largest, MAX_LEVEL), MIN_STEP)


@triton.jit
def inverse_of(step):
    """Levels per unit; 0 if the step is infinite."""
    return tl.math.div_rn(tl.full(step.shape, 1.0, tl.float32), step)


@triton.jit
def levels_of(values, inverse):
    """The int8 levels of float32 values; any level for values that are not finite."""
    shifted = values * inverse + ROUND
    return shifted.to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def quantise_rows(x, levels, step, inputs, BLOCK: tl.constexpr):
    """The kernel of `quantise`; grid [rows]."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    inside = k < inputs
    values = tl.load(x + row * inputs + k, mask=inside, other=0.0).to(tl.float32)
    width = step_of(tl.max(sizes_of(values), axis=0))
    tl.store(levels + row * inputs + k, levels_of(values, inverse_of(width)), mask=inside)
    tl.store(step + row, width)


@triton.jit
def int8_product(
    output, x, step, weight, scale, bias, rows, outputs, inputs,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
    DYNAMIC: tl.constexpr, ROUND_INPUTS: tl.constexpr, GELU: tl.constexpr,
):  # fmt: skip
    """The kernel of both layers; grid [tiles of outputs, tiles of rows].

    `step` is that of each row, or its largest absolute value if the inputs are rounded here.
    """
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    m = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, INPUTS)
    weights = weight + n[:, None].to(tl.int64) * inputs + k[None, :]  # [N, K]
    values = x + m[None, :].to(tl.int64) * inputs + k[:, None]  # [K, M]
    sums = tl.zeros([OUTPUTS, ROWS], tl.int32 if DYNAMIC else tl.float32)
    if DYNAMIC:
        width = tl.load(step + m, mask=m < rows, other=0.0)
        if ROUND_INPUTS:
            width = step_of(width)
            inverse = inverse_of(width)[None, :]
    for start in range(0, inputs, INPUTS):
        inside = start + k < inputs
        w = tl.load(weights + start, mask=(n < outputs)[:, None] & inside[None, :], other=0)
        v = tl.load(values + start, mask=inside[:, None] & (m < rows)[None, :], other=0)
        if ROUND_INPUTS:
            v = levels_of(v.to(tl.float32), inverse)
        if DYNAMIC:
            sums = tl.dot(w, v, sums, out_dtype=tl.int32)
        else:  # the converted weights are the first operand, which may stay in registers
            sums = tl.dot(w.to(v.dtype), v, sums, input_precision="ieee")
    result = sums.to(tl.float32) * tl.load(scale + n, mask=n < outputs, other=0.0)[:, None]
    if DYNAMIC:
        result = result * width[None, :]
    result += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)[:, None]
    if GELU:
        cubic = result + 0.044715 * result * result * result
        result = result * tl.sigmoid(1.5957691216057308 * cubic)
    at = output + m[None, :].to(tl.int64) * outputs + n[:, None]
    tl.store(
        at, result.to(output.dtype.element_ty), mask=(n < outputs)[:, None] & (m < rows)[None, :]
    )
