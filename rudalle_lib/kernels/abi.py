"""What Python has in common with the compiled library: structures and constants.

Each of them is mirrored in `csrc/`. The library exports its own sizes and constants; `mismatches`
compares them with these, so a stale library is detected before it computes anything.
"""

from __future__ import annotations

import ctypes

ABI_VERSION = 1
"""Raise this, here and in `csrc/abi.h`, when the meaning of a structure or of a memory layout
changes but no size or constant does."""

EMULATED = 0
"""Whether the library emulates AMX, for tests; a run never uses one that does."""

BLOCK = 32
"""Elements per load; row lengths must be multiples of it."""

MAX_GROUP = 8
"""Images of one prompt that share a pass over its text."""

MAX_HEAD_WIDTH = 256
"""Largest width of an attention head."""

MAX_CONTEXT = 512
"""Most text positions plus visible cells of one attention."""

TILE_ROWS = 16
"""Rows of an AMX tile."""

TILE_COLUMNS = 16
"""Columns of an AMX tile of sums, 4 bytes each."""

TILE_ROW_BYTES = 64
"""Bytes per row of an AMX tile."""

PANELS_PER_STEP = 2
"""Groups of `TILE_COLUMNS` outputs that AMX linear layers compute together."""

ROWS_PER_STEP = 32
"""Input rows that AMX linear layers process together."""

STEP_BYTES = 32
"""Bytes of weights per step of a linear layer with vectors: 16 of bfloat16, 32 of int8."""

CONSTANTS = {
    "ABI_VERSION": ABI_VERSION,
    "EMULATED": EMULATED,
    "BLOCK": BLOCK,
    "MAX_GROUP": MAX_GROUP,
    "MAX_HEAD_WIDTH": MAX_HEAD_WIDTH,
    "MAX_CONTEXT": MAX_CONTEXT,
    "TILE_ROWS": TILE_ROWS,
    "TILE_COLUMNS": TILE_COLUMNS,
    "TILE_ROW_BYTES": TILE_ROW_BYTES,
    "PANELS_PER_STEP": PANELS_PER_STEP,
    "ROWS_PER_STEP": ROWS_PER_STEP,
    "STEP_BYTES": STEP_BYTES,
}
"""The constants that the library exports, by name."""


def int_fields(*names: str) -> tuple[tuple[str, type], ...]:
    """Fields of a structure of type int64."""
    return tuple((name, ctypes.c_int64) for name in names)


def pointer_fields(*names: str) -> tuple[tuple[str, type], ...]:
    """Fields of a structure that hold addresses of tensors or arrays."""
    return tuple((name, ctypes.c_void_p) for name in names)


class Call(ctypes.Structure):
    """One call of a `Program`; see `csrc/run_all.cpp`."""

    _fields_ = (*pointer_fields("function", "args"), *int_fields("single_threaded"))


class ImageGroup(ctypes.Structure):
    """Images of a batch with the same prompt; see `csrc/cached_attention.h`."""

    _fields_ = (
        ("prompt", ctypes.c_int32),
        ("images_before", ctypes.c_int32),
        ("num_images", ctypes.c_int32),
        ("images", ctypes.c_int32 * MAX_GROUP),
    )


class AttentionArgs(ctypes.Structure):
    """Arguments of attention from a new cell; see `csrc/cached_attention.h`."""

    _fields_ = (
        *int_fields("heads", "head_width", "text_length", "num_blocks", "block_size"),
        *int_fields("block", "slot", "num_visible", "num_groups"),
        *pointer_fields("visible", "groups", "projected", "keys", "values"),
        *pointer_fields("text_keys", "text_values", "contexts"),
    )


class LinearArgs(ctypes.Structure):
    """Arguments of a linear layer; see `csrc/linear.h`."""

    _fields_ = (
        *int_fields("rows", "inputs", "outputs", "blocks", "depth", "gelu"),
        *pointer_fields("input", "weight", "scale", "bias", "tiles", "steps", "sums", "output"),
    )


class LayerNormArgs(ctypes.Structure):
    """Arguments of a layer norm; see `csrc/layer_norm.cpp`."""

    _fields_ = (
        *int_fields("rows", "width"),
        ("epsilon", ctypes.c_double),
        *pointer_fields("input", "weight", "bias", "added", "output"),
    )


class GumbelArgmaxArgs(ctypes.Structure):
    """Arguments of Gumbel-max sampling; see `csrc/gumbel_argmax.cpp`."""

    _fields_ = (
        *int_fields("rows", "vocab_size"),
        *pointer_fields("streams", "logits", "min_logit", "chosen"),
    )


STRUCTURES: tuple[type[ctypes.Structure], ...] = (
    Call,
    ImageGroup,
    AttentionArgs,
    LinearArgs,
    LayerNormArgs,
    GumbelArgmaxArgs,
)
"""The structures whose sizes the library exports."""


def mismatches(library: ctypes.CDLL) -> list[str]:
    """Compare a library with this module.

    Returns:
        One text per size or constant that differs or that the library does not export.
    """
    expected = {f"constant_{name}": value for name, value in CONSTANTS.items()}
    expected |= {f"sizeof_{kind.__name__}": ctypes.sizeof(kind) for kind in STRUCTURES}
    found = {name: _exported(library, name) for name in expected}
    return [
        f"{name}: expected {value}, found {'nothing' if found[name] is None else found[name]}"
        for name, value in expected.items()
        if found[name] != value
    ]


def _exported(library: ctypes.CDLL, name: str) -> int | None:
    function = getattr(library, name, None)
    if function is None:
        return None
    function.argtypes, function.restype = (), ctypes.c_int64
    return int(function())
