"""Convert checkpoints to safetensors on first use, and verify the copy on every later use.

Safetensors files contain no code, and tensors can be read one by one, so a network loads without
its whole file in memory. Format: https://github.com/huggingface/safetensors. Files are written
here tensor by tensor, because the library's own writer needs all tensors in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from rudalle_lib.errors import WeightsError
from rudalle_lib.weights.checkpoints import check_exists, checkpoint_errors, pickled_tensors
from rudalle_lib.weights.digest_cache import (
    Record,
    copy_folders,
    copy_path,
    find_record,
    hash_file,
    record_path,
)
from rudalle_lib.weights.pytorch_files import CheckpointTensor

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Names of types in the header of a safetensors file."""

MAX_MAPPED_BYTES = 64 * 2**20
"""Bytes of a checkpoint that are in memory together, unless a tensor is not contiguous."""


def safe_file(path: Path) -> Path:
    """The safetensors version of a weights file: the file itself, or a verified copy.

    The copy is written on first use, and again if it or the checkpoint has changed.

    Args:
        path: a safetensors file or a PyTorch checkpoint.

    Raises:
        WeightsError: the checkpoint cannot be read, or its copy cannot be written.
    """
    if path.suffix == ".safetensors":
        return path
    check_exists(path)
    found = find_record(path)
    if found is not None:
        record, folder = found
        copy = copy_path(folder, path)
        if copy.is_file() and hash_file(copy) == record.copy_sha256:
            return copy
    return convert(path)


def convert(path: Path) -> Path:
    """Write the safetensors copy of a checkpoint and its record.

    Returns:
        The path of the copy.

    Raises:
        WeightsError: the checkpoint cannot be read, or its copy cannot be written.
    """
    pickled_tensors(path)  # an unreadable checkpoint is an error, even if no folder can be written
    reasons = []
    for folder in copy_folders(path):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return _convert_into(folder, path)
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
    raise WeightsError(
        f"cannot write the safetensors copy of {path}, which takes "
        f"{path.stat().st_size / 1e9:.1f} GB ({'; '.join(reasons)}). Free some space, or set "
        "XDG_CACHE_HOME to a folder that can be written"
    )


def _convert_into(folder: Path, path: Path) -> Path:
    copy = copy_path(folder, path)
    status = path.stat()
    temporary = copy.with_name(f"{copy.name}.{uuid.uuid4().hex}.partial")
    try:
        with temporary.open("wb") as file:
            copy_sha256 = _write(file, path)
        record = Record(status.st_size, status.st_mtime_ns, hash_file(path), copy_sha256)
        temporary.replace(copy)
        temporary.write_text(record.to_json(), "utf-8")
        temporary.replace(
            record_path(folder, path)
        )  # last, because a copy without a record does not count
    finally:
        temporary.unlink(missing_ok=True)
    return copy


def _write(file: BinaryIO, path: Path) -> str:
    """Write a checkpoint as safetensors; returns the SHA-256 of what was written."""
    digest = hashlib.sha256()
    for piece in _pieces(path):
        digest.update(piece)
        file.write(piece)
    file.flush()
    os.fsync(file.fileno())
    return digest.hexdigest()


def _pieces(path: Path) -> Iterator[bytes | memoryview]:
    """The content of the copy, piece by piece."""
    tensors = pickled_tensors(path)
    # Larger element types first, so that every tensor is aligned to its element size.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    yield header({name: tensors[name] for name in names})
    with checkpoint_errors(path):
        for name in names:
            yield from tensors[name].pieces(MAX_MAPPED_BYTES)


def header(tensors: Mapping[str, CheckpointTensor]) -> bytes:
    """The start of a safetensors file: the length of its JSON header, and the header.

    Args:
        tensors: by name, in the order in which they follow.

    Raises:
        WeightsError: a tensor has a type that safetensors files do not support.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise WeightsError(
                f"{name} is of type {tensor.dtype}, which safetensors do not support"
            )
        start, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
