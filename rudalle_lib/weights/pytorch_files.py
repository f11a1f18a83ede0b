"""List the tensors of a PyTorch checkpoint, and read them one by one.

A checkpoint is a zip archive with a pickle and a file per storage or, before torch 1.6, pickles
followed by the storages. Neither is trusted: sizes in it are compared with the size of the file
before anything is read, and pickles run nothing (see `pickles`).

Sources: `torch.serialization`; the zip format in APPNOTE.TXT by PKWARE.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from rudalle_lib.weights.pickles import (
    MAX_PICKLE_BYTES,
    CodeError,
    PickledTensor,
    PickleError,
    read_pickle,
)

MAX_DIRECTORY_BYTES = 8 * 2**20
"""Largest directory of a zip archive. Each of its entries takes about 100 bytes."""

MAX_EXPANSION = 4
"""Largest size of the tensors together, relative to their file.

Tensors of one storage may be stored once, such as the four names of a translator's embeddings.
"""

FREE_BYTES = 2**20
"""Size of the tensors that is accepted for any file."""

MAX_LISTED_KEYS = 8
"""Keys that an error lists before it gives the number of the others."""

BIG_ENDIAN = "its bytes are in big-endian order"

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001


Places = dict[str, tuple[int, int]]
"""Position and size in bytes of every storage in a file."""


@dataclass(frozen=True)
class CheckpointTensor:
    """A tensor in a checkpoint that has not been read yet.

    Attributes:
        path: the checkpoint.
        layout: type, shape and strides.
        position: byte of its first element in the file.
    """

    path: Path
    layout: PickledTensor
    position: int

    @property
    def dtype(self) -> torch.dtype:
        """Type of its elements."""
        return self.layout.dtype

    @property
    def shape(self) -> torch.Size:
        """Sizes of its dimensions."""
        return torch.Size(self.layout.shape)

    @property
    def nbytes(self) -> int:
        """Size of its elements in bytes."""
        return self.layout.numel * self.dtype.itemsize

    def pieces(self, max_bytes: int) -> Iterator[bytes | memoryview]:
        """The bytes of the tensor, contiguous and in order, in pieces.

        Raises:
            OSError: the file cannot be read.
            PickleError: it has been truncated.
        """
        if not self.layout.is_contiguous:
            data = self.read()
            yield data.reshape(-1).view(torch.uint8).numpy().data
            return
        with self.path.open("rb") as file:
            file.seek(self.position)
            left = self.nbytes
            while left:
                piece = file.read(min(left, max_bytes))
                if not piece:
                    raise PickleError("it is truncated")
                left -= len(piece)
                yield piece

    def read(self) -> Tensor:
        """Read the tensor, contiguous, into memory.

        Raises:
            OSError: the file cannot be read.
            PickleError: it has been truncated.
        """
        if self.layout.numel == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        size = self.layout.span * self.dtype.itemsize
        data = np.fromfile(self.path, np.uint8, size, offset=self.position)
        if data.size < size:
            raise PickleError("it is truncated")
        elements = torch.from_numpy(data).view(self.dtype)
        if self.layout.is_contiguous:
            return elements.view(self.shape)
        return elements.as_strided(self.shape, self.layout.stride).contiguous()


def checkpoint_tensors(path: Path) -> dict[str, CheckpointTensor]:
    """List the tensors of a checkpoint by name, without reading them.

    Raises:
        OSError: the file cannot be read.
        CodeError: it names a function or class that checkpoints do not need.
        PickleError: it is damaged, unsafe, or contains anything but named tensors. The message is
            a clause such as "it is truncated".
    """
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\3\4"
        size = file.seek(0, io.SEEK_END)
        content, places = (_read_zip if is_zip else _read_legacy)(file, size)
    found = {
        name: CheckpointTensor(path, tensor, _position(tensor, places))
        for name, tensor in unwrap_state_dict(content).items()
    }
    total = sum(tensor.nbytes for tensor in found.values())
    if total > MAX_EXPANSION * size + FREE_BYTES:
        raise PickleError(
            f"its tensors have {total:,} bytes, but the file has {size:,}: tensors overlap, or "
            "repeat their elements"
        )
    return found


def unwrap_state_dict(content: Any) -> dict[str, PickledTensor]:
    """Find the state dict in the checkpoint of a training framework.

    Lightning (VQ-GAN) stores it under `state_dict`, BasicSR (Real-ESRGAN) under `params`, or under
    `params_ema` for averaged weights. If there are both, the published code uses `params`.

    Args:
        content: of a pickle.

    Raises:
        PickleError: the content is not a state dict.
    """
    for key in ("state_dict", "params", "params_ema"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise PickleError(f"it contains a {type(content).__name__}, expected named tensors")
    others = [name for name, value in content.items() if not isinstance(value, PickledTensor)]
    if others:
        raise PickleError(
            f"it contains values that are not tensors: {list_keys(map(str, others))}; "
            "expected a state dict"
        )
    return {str(name): tensor for name, tensor in content.items()}


def list_keys(names: Iterable[str]) -> str:
    """The first `MAX_LISTED_KEYS` names, shortened, and the number of the others."""
    all_names = [name if len(name) <= 100 else f"{name[:100]}..." for name in names]
    others = len(all_names) - MAX_LISTED_KEYS
    more = f" and {others} more" if others > 0 else ""
    return ", ".join(all_names[:MAX_LISTED_KEYS]) + more


def _position(tensor: PickledTensor, places: Places) -> int:
    """The byte of the file at which a tensor begins."""
    if tensor.numel == 0:
        return 0
    storage = tensor.storage
    start, size = places.get(storage.key, (0, 0))
    offset = storage.offset * storage.dtype.itemsize + tensor.offset
    if offset + tensor.span * tensor.dtype.itemsize > size:
        raise PickleError("it lacks elements of a tensor")
    return start + offset


# --- zip archives ------------------------------------------------------------------------------


class _BoundedFile:
    """A file for `zipfile`, which reads the directory at once, whatever size it claims."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Read at most `MAX_DIRECTORY_BYTES`."""
        if size > MAX_DIRECTORY_BYTES:
            raise PickleError(f"its directory has {size:,} bytes")
        return self.file.read(MAX_DIRECTORY_BYTES if size < 0 else size)


def _read_zip(file: BinaryIO, size: int) -> tuple[Any, Places]:
    """The unpickled content, and the place of every storage."""
    try:
        with zipfile.ZipFile(cast(BinaryIO, _BoundedFile(file))) as archive:
            entries = archive.infolist()
    except PickleError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, EOFError):
        raise PickleError("it is a damaged zip archive") from None
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise PickleError("its parts are compressed, which torch.save never does")
    if sum(entry.file_size for entry in entries) > size:
        raise PickleError("its parts together are larger than the file")
    pickled = next((entry for entry in entries if entry.filename.endswith("data.pkl")), None)
    if pickled is None:
        raise PickleError("it is a zip archive without tensors")
    folder = pickled.filename.removesuffix("data.pkl")
    names = {entry.filename.removeprefix(folder): entry for entry in entries}
    if "constants.pkl" in names:
        raise PickleError("it is a TorchScript program, expected only tensors")
    places = {name: _place(file, entry, size) for name, entry in names.items()}
    if "byteorder" in places and _part(file, places["byteorder"]) == b"big":
        raise PickleError(BIG_ENDIAN)
    content, _ = read_pickle(io.BytesIO(_part(file, places["data.pkl"])))
    return content, {
        name.removeprefix("data/"): place
        for name, place in places.items()
        if name.startswith("data/")
    }


def _place(file: BinaryIO, entry: zipfile.ZipInfo, size: int) -> tuple[int, int]:
    """Position and size of a part of an archive."""
    file.seek(max(0, entry.header_offset))
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise PickleError("it is a damaged zip archive")
    start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    if entry.file_size != entry.compress_size or start + entry.file_size > size:
        raise PickleError("it is a truncated zip archive")
    return start, entry.file_size


def _part(file: BinaryIO, place: tuple[int, int]) -> bytes:
    position, size = place
    if size > MAX_PICKLE_BYTES:
        raise PickleError(f"its pickle has {size:,} bytes; at most {MAX_PICKLE_BYTES:,} are read")
    file.seek(position)
    return file.read(size)


# --- the format before torch 1.6 ---------------------------------------------------------------


def _read_legacy(file: BinaryIO, size: int) -> tuple[Any, Places]:
    """The unpickled content, and the place of every storage."""
    file.seek(0)
    head = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    try:
        if read_pickle(head)[0] != LEGACY_MAGIC or read_pickle(head)[0] != LEGACY_PROTOCOL:
            raise PickleError("it is a pickle, but not one of torch.save")
        system, _ = read_pickle(head)
        content, dtypes = read_pickle(head)
        keys, _ = read_pickle(head)
    except CodeError:
        raise
    except PickleError:
        if head.tell() == MAX_PICKLE_BYTES < size:
            raise PickleError(f"its pickle has more than {MAX_PICKLE_BYTES:,} bytes") from None
        raise
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise PickleError(BIG_ENDIAN)
    if not isinstance(keys, list):
        raise PickleError("its pickle is damaged")
    places, position = {}, head.tell()
    for key in keys:
        name = key.decode("ascii", "replace") if isinstance(key, bytes) else key
        if not isinstance(name, str) or name not in dtypes:
            raise PickleError("it lists a storage that its pickle does not refer to")
        file.seek(position)
        (numel,) = struct.unpack("<q", file.read(8).ljust(8, b"\xff"))
        nbytes = numel * dtypes[name].itemsize
        if numel < 0 or position + 8 + nbytes > size:
            raise PickleError("it is truncated")
        places[name] = position + 8, nbytes
        position += 8 + nbytes
    return content, places
