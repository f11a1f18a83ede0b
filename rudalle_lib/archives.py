"""A shard's pictures in one file: a WebDataset tar, or a Parquet table with a column of pictures.

WebDataset (github.com/webdataset/webdataset): files whose names are equal up to the first dot make
one sample. Parquet: pictures are structs of bytes and path, which Hugging Face `datasets` takes for
its `Image`.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from rudalle_lib.errors import StorageError

IMAGE_COLUMN = "image"
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

HUGGING_FACE = {"info": {"features": {IMAGE_COLUMN: {"_type": "Image"}}}}
"""Metadata of the schema by which `datasets` knows a column of pictures."""

PICTURES_A_GROUP = 64
"""Pictures that go into a file at a time. In Parquet one is read with those of its group only."""

#: Bytes that Arrow puts together before they are written.
WRITE_BUFFER = 2**19

NOT_PICTURES = ("txt", "json")

Made = TypeVar("Made")
Stream = BinaryIO | io.RawIOBase
Group = tuple[pa.Table, Sequence[bytes]]
"""Some pictures as encoded files, and their metadata: a row each, among it `image_id` and `text`.
"""


def write_tar(stream: Stream, groups: Iterable[Group], suffix: str) -> None:
    """A tar with three files a picture: itself, its prompt as `.txt`, its metadata as `.json`.

    Equal pictures give equal bytes, however they are grouped.

    Args:
        stream: is written to, and left open.
        groups: are taken one at a time, in a thread, while the one before is written.
        suffix: of the pictures' names, without a dot.
    """
    for samples in _one_ahead(_samples(table, pictures, suffix) for table, pictures in groups):
        stream.write(samples)
    stream.write(bytes(2 * tarfile.BLOCKSIZE))


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


def write_table(stream: Stream, groups: Iterable[Group], suffix: str) -> None:
    """A Parquet file of the metadata behind a first column of pictures, as `write_tar` takes them.

    A group becomes a row group; there must be at least one. A column that is called `image` already
    becomes `input_image`.
    """
    tables = _one_ahead(_with_pictures(table, pictures, suffix) for table, pictures in groups)
    first = next(tables)
    sink = pa.BufferedOutputStream(pa.PythonFile(stream, "w"), WRITE_BUFFER)
    # Pictures are compressed already, and their least and greatest bytes tell nothing.
    with pq.ParquetWriter(
        sink, first.schema, use_dictionary=False, compression="none",
        write_statistics=first.column_names[1:],
    ) as writer:  # fmt: skip
        for table in chain([first], tables):
            writer.write_table(table)
    sink.detach()  # else the stream would be closed with it


def _one_ahead(made: Iterator[Made]) -> Iterator[Made]:
    """The same things; the next one is made, by a thread, while one is written."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, made, None)
        while (come := coming.result()) is not None:
            coming = thread.submit(next, made, None)
            yield come


def _samples(table: pa.Table, pictures: Sequence[bytes], suffix: str) -> bytes:
    parts: list[bytes] = []
    for row, picture in zip(table.to_pylist(), pictures, strict=True):
        key = _key(row["image_id"])
        parts += _member(f"{key}.{suffix}", picture)
        parts += _member(f"{key}.txt", row["text"].encode())
        parts += _member(f"{key}.json", _json(row))
    return b"".join(parts)


def _with_pictures(table: pa.Table, pictures: Sequence[bytes], suffix: str) -> pa.Table:
    names = [f"{row}.{suffix}" for row in table.column("image_id").to_pylist()]
    cells = [pa.array(pictures, pa.binary()), pa.array(names, pa.string())]
    taken = [IMAGE_COLUMN, *table.column_names]
    free = [free_name(name, taken) if name == IMAGE_COLUMN else name for name in taken[1:]]
    column = pa.StructArray.from_arrays(cells, fields=list(IMAGE_TYPE))
    packed = table.rename_columns(free).add_column(0, IMAGE_COLUMN, column)
    own = table.schema.metadata or {}
    return packed.replace_schema_metadata({**own, b"huggingface": json.dumps(HUGGING_FACE)})


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
