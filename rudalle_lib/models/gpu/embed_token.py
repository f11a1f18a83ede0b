"""The start of a step in one Triton kernel: the latest token of each row becomes hidden states.

`hidden = embedding + position`, then `normalised = norm(hidden)`. A program computes a row.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, nn

from rudalle_lib.models.gpu.add_norms import layer_norm, store_row, warps, written
from rudalle_lib.models.layers.triton_support import RoundedRows


def embed_and_normalise(
    hidden: Tensor,
    latest: Tensor,
    embeddings: Tensor,
    positions: Tensor,
    place: Tensor,
    norm: nn.LayerNorm,
    normalised: Tensor | RoundedRows,
) -> None:
    """Embed a token of each row and normalise it for the first layer.

    Args:
        hidden: [R, C], overwritten.
        latest: int64 [R], the tokens.
        embeddings: [codes, C].
        positions: [H * W, C].
        place: int32 [1], the place of the tokens in their images.
        norm: of the first layer.
        normalised: [R, C], overwritten.
    """
    rows, width = hidden.shape
    block = triton.next_power_of_2(width)
    embed_token[(rows,)](
        hidden, latest, embeddings, positions, place, norm.weight, norm.bias,
        *written(normalised), width, norm.eps, BLOCK=block, num_warps=warps(block),
    )  # fmt: skip


@triton.jit
def embed_token(
    hidden, latest, embeddings, positions, place_at, weight, bias, normalised, step, width, eps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The kernel of `embed_and_normalise`; grid [rows]. `step` is None, or that of each row."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    inside = c < width
    token, place = tl.load(latest + row), tl.load(place_at).to(tl.int64)
    states = tl.load(embeddings + token * width + c, mask=inside, other=0.0).to(tl.float32)
    states += tl.load(positions + place * width + c, mask=inside, other=0.0).to(tl.float32)
    rounded = states.to(hidden.dtype.element_ty)
    tl.store(hidden + row * width + c, rounded, mask=inside)
    output = layer_norm(rounded.to(tl.float32), weight, bias, c, inside, width, eps)
    store_row(output.to(hidden.dtype.element_ty), normalised, step, row, c, inside, width)
