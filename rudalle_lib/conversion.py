"""Checkpoints as safetensors: converted on first use, verified on every later one.

Safetensors hold no code, and single tensors can be read from them, so that a network loads without
its whole file in memory. Format: https://github.com/huggingface/safetensors. It is written here
piece by piece, because the library's own writer takes all tensors at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from rudalle_lib.checkpoints import StateDict, load_state_dict
from rudalle_lib.errors import WeightsError
from rudalle_lib.weight_records import (
    Record,
    copy_path,
    find_record,
    folders,
    hashed,
    record_path,
)

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip

PIECE = 64 * 2**20
"""Bytes of tensors that are in memory at once while converting, single larger ones aside."""


def safe_file(path: Path) -> Path:
    """The safetensors of a weights file: itself, or its verified copy, made if there is none.

    A copy that is not what was once written is made again.

    Raises:
        WeightsError: the checkpoint cannot be read, or there is no room for its copy.
    """
    if path.suffix == ".safetensors":
        return path
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}")
    found = find_record(path)
    if found is not None:
        record, folder = found
        copy = copy_path(folder, path)
        if copy.is_file() and hashed(copy) == record.copy_sha256:
            return copy
    return convert(path)


def convert(path: Path) -> Path:
    """Write the safetensors copy of a checkpoint and its record; returns the copy.

    Raises:
        WeightsError: as `safe_file`.
    """
    load_state_dict(path)  # an unreadable checkpoint is an error, whatever the folders are like
    reasons = []
    for folder in folders(path):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return _convert_into(folder, path)
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
    raise WeightsError(
        f"cannot write the safetensors copy of {path}, which takes "
        f"{path.stat().st_size / 1e9:.1f} GB ({'; '.join(reasons)}). Make room, or set "
        "XDG_CACHE_HOME to a folder that can be written"
    )


def _convert_into(folder: Path, path: Path) -> Path:
    copy, mark = copy_path(folder, path), uuid.uuid4().hex
    status = path.stat()
    temporary = copy.with_name(f"{copy.name}.{mark}.partial")
    try:
        with temporary.open("wb") as file:
            copy_sha256 = _write(file, path)
        record = Record(status.st_size, status.st_mtime_ns, hashed(path), copy_sha256)
        temporary.replace(copy)
        temporary.write_text(record.text(), "utf-8")
        temporary.replace(record_path(folder, path))  # last: no record, no copy
    finally:
        temporary.unlink(missing_ok=True)
    return copy


def _write(file: BinaryIO, path: Path) -> str:
    """Write the tensors of a checkpoint as safetensors; returns their SHA-256."""
    digest = hashlib.sha256()
    for piece in _pieces(path):
        digest.update(piece)
        file.write(piece)
    file.flush()
    os.fsync(file.fileno())
    return digest.hexdigest()


def _pieces(path: Path) -> Iterator[bytes | memoryview]:
    """The bytes of the copy in their order."""
    state = load_state_dict(path)
    # The widest numbers first, so that every tensor begins at a multiple of its numbers' width.
    names = sorted(state, key=lambda name: (-state[name].itemsize, name))
    yield header({name: state[name] for name in names})
    mapped, done = zipfile.is_zipfile(path), 0
    for name in names:
        tensor = state[name].contiguous()
        yield raw_bytes(tensor)
        done += tensor.nbytes
        if mapped and done > PIECE:
            # What was read stays in memory as long as the file is mapped: map it anew.
            del tensor
            state, done = load_state_dict(path), 0


def header(state: StateDict) -> bytes:
    """The length and the JSON that safetensors begin with, for tensors in their order."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in state.items():
        if tensor.dtype not in DTYPES:
            raise WeightsError(f"{name} is of type {tensor.dtype}, which safetensors cannot hold")
        start, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def raw_bytes(tensor: Tensor) -> bytes | memoryview:
    """The numbers of a contiguous CPU tensor as they lie in memory, not copied."""
    if not tensor.numel():
        return b""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data
