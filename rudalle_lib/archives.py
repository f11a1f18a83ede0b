"""A shard's pictures in one file: a WebDataset tar, or a Parquet table with a column of pictures.

WebDataset (github.com/webdataset/webdataset): files whose names are equal up to the first dot make
one sample. Parquet: pictures are structs of bytes and path, which Hugging Face `datasets` takes for
its `Image`.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from rudalle_lib.errors import StorageError

IMAGE_COLUMN = "image"
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

HUGGING_FACE = {"info": {"features": {IMAGE_COLUMN: {"_type": "Image"}}}}
"""Metadata of the schema by which `datasets` knows a column of pictures."""

PICTURES_A_GROUP = 64
"""Pictures in a row group, so that one is read without all the others."""

NOT_PICTURES = ("txt", "json")


def pack_tar(table: pa.Table, pictures: Sequence[bytes], suffix: str) -> bytes:
    """A tar with three files a picture: itself, its prompt as `.txt`, its metadata as `.json`.

    Equal arguments give equal bytes.

    Args:
        table: metadata, a row a picture, among it `image_id` and `text`.
        pictures: encoded files.
        suffix: of their names, without a dot.
    """
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row, picture in zip(table.to_pylist(), pictures, strict=True):
            key = _key(row["image_id"])
            _add(tar, f"{key}.{suffix}", picture)
            _add(tar, f"{key}.txt", row["text"].encode())
            _add(tar, f"{key}.json", _json(row))
    return stream.getvalue()


def unpack_tar(content: bytes, name: str) -> dict[str, bytes]:
    """The pictures of such a tar by image id; `name` is its own, for errors.

    Raises:
        StorageError: it is no whole tar.
    """
    pictures: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                file = tar.extractfile(member) if suffix not in NOT_PICTURES else None
                if file is not None:
                    pictures[key.replace("%2E", ".")] = file.read()
    except (tarfile.TarError, EOFError) as error:
        raise StorageError(f"{name} is damaged: expected a tar of pictures, {error}.") from None
    return pictures


def with_pictures(table: pa.Table, pictures: Sequence[bytes], suffix: str) -> pa.Table:
    """The metadata with a first column of pictures; a column of that name becomes `input_image`."""
    names = [f"{row}.{suffix}" for row in table.column("image_id").to_pylist()]
    cells = [
        {"bytes": picture, "path": name} for picture, name in zip(pictures, names, strict=True)
    ]
    free = [f"input_{name}" if name == IMAGE_COLUMN else name for name in table.column_names]
    table = table.rename_columns(free)
    table = table.add_column(0, IMAGE_COLUMN, pa.array(cells, IMAGE_TYPE))
    own = table.schema.metadata or {}
    return table.replace_schema_metadata({**own, b"huggingface": json.dumps(HUGGING_FACE)})


def pictures_of(table: pa.Table) -> dict[str, bytes]:
    """The pictures of such a table by image id."""
    cells = table.column(IMAGE_COLUMN).combine_chunks().field("bytes").to_pylist()
    return dict(zip(table.column("image_id").to_pylist(), cells, strict=True))


def _key(image_id: str) -> str:
    """The name of a sample: ids may hold dots, which would end it."""
    return image_id.replace(".", "%2E")


def _json(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, default=str).encode()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # of nobody, from 1970, for all to read
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
