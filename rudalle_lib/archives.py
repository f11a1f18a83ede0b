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
import pyarrow.parquet as pq

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
    parts: list[bytes] = []
    for row, picture in zip(table.to_pylist(), pictures, strict=True):
        key = _key(row["image_id"])
        parts += _member(f"{key}.{suffix}", picture)
        parts += _member(f"{key}.txt", row["text"].encode())
        parts += _member(f"{key}.json", _json(row))
    return b"".join([*parts, bytes(2 * tarfile.BLOCKSIZE)])


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


def pack_table(table: pa.Table, pictures: Sequence[bytes], suffix: str) -> bytes:
    """A Parquet file of the metadata behind a first column of pictures, as `pack_tar` takes them.

    A column that is called `image` already becomes `input_image`.
    """
    names = [f"{row}.{suffix}" for row in table.column("image_id").to_pylist()]
    cells = [pa.array(pictures, pa.binary()), pa.array(names, pa.string())]
    taken = [IMAGE_COLUMN, *table.column_names]
    free = [free_name(name, taken) if name == IMAGE_COLUMN else name for name in taken[1:]]
    column = pa.StructArray.from_arrays(cells, fields=list(IMAGE_TYPE))
    packed = table.rename_columns(free).add_column(0, IMAGE_COLUMN, column)
    own = table.schema.metadata or {}
    packed = packed.replace_schema_metadata({**own, b"huggingface": json.dumps(HUGGING_FACE)})
    stream = io.BytesIO()
    # Pictures are compressed already, and their least and greatest bytes tell nothing.
    pq.write_table(
        packed, stream, row_group_size=PICTURES_A_GROUP, use_dictionary=False,
        compression="none", write_statistics=free,
    )  # fmt: skip
    return stream.getvalue()


def unpack_table(content: bytes, name: str) -> dict[str, bytes]:
    """The pictures of such a file by image id; `name` is its own, for errors.

    Raises:
        StorageError: it is no whole Parquet file, or has no pictures.
    """
    try:
        table = pq.read_table(pa.BufferReader(content), columns=["image_id", IMAGE_COLUMN])
        cells = table.column(IMAGE_COLUMN).combine_chunks().field("bytes").to_pylist()
        return dict(zip(table.column("image_id").to_pylist(), cells, strict=True))
    except (pa.ArrowException, OSError, KeyError) as error:
        why = " ".join(str(error).split()).rstrip(".")
        raise StorageError(f"{name} is damaged: expected a table of pictures, {why}.") from None


def free_name(name: str, taken: Sequence[str]) -> str:
    """The name of a column that is given one's own name only if no other has it."""
    while name in taken:
        name = f"input_{name}"
    return name


def _key(image_id: str) -> str:
    """The name of a sample: ids may hold dots, which would end it."""
    return image_id.replace(".", "%2E")


def _json(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, default=str).encode()


def _member(name: str, content: bytes) -> tuple[bytes, bytes, bytes]:
    """Header, content and padding: what `TarFile.addfile` writes, without its copies."""
    member = tarfile.TarInfo(name)  # of nobody, from 1970, for all to read
    member.size = len(content)
    padding = bytes(-len(content) % tarfile.BLOCKSIZE)
    return member.tobuf(tarfile.USTAR_FORMAT), content, padding
