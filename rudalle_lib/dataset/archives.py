"""All images of a shard in one file: a WebDataset tar, or a Parquet table with an image column.

WebDataset (github.com/webdataset/webdataset): files whose names are equal up to the first dot form
one sample. Parquet: images are structs of bytes and path, which Hugging Face `datasets` reads as
its `Image` feature.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rudalle_lib.errors import StorageError
from rudalle_lib.schema.arrow import free_name
from rudalle_lib.schema.features import has_maps, loadable
from rudalle_lib.schema.tables import row_as_json

IMAGE_COLUMN = "image"
"""Name of the image column in Parquet."""

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""Arrow type of the image column."""

HUGGING_FACE = {"info": {"features": {IMAGE_COLUMN: {"_type": "Image"}}}}
"""Schema metadata by which `datasets` recognises the image column."""

IMAGES_PER_GROUP = 64
"""Images written at a time. In Parquet they form a row group, the smallest part that is read."""

WRITE_BUFFER = 2**19
"""Bytes that Arrow buffers before it writes them."""

IMAGES_PER_BATCH = 8
"""Images of a table that are decoded at a time: they may share one stored value."""

PLAIN_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
"""Types of members of a tar that are read."""

NOT_IMAGES = ("txt", "json")
"""Suffixes of the other files in a tar."""

Item = TypeVar("Item")

Stream = BinaryIO | io.RawIOBase

Group = tuple[pa.Table, Sequence[bytes]]
"""Some encoded images with their metadata, one row per image; `image_id` and `text` are required.
"""


def write_tar(stream: Stream, groups: Iterable[Group], suffix: str) -> None:
    """Write a tar with three files per image: the image, its prompt (.txt), its metadata (.json).

    The same images always give the same bytes, however they are grouped.

    Args:
        stream: Where the tar is written; it is left open.
        groups: Images with metadata. The next group is prefetched in a thread during a write.
        suffix: Suffix of the image files, without a dot.
    """
    for samples in _prefetch(_samples(table, images, suffix) for table, images in groups):
        stream.write(samples)
    stream.write(bytes(2 * tarfile.BLOCKSIZE))


def unpack_tar(content: bytes, name: str) -> dict[str, bytes]:
    """Unpack the images of a tar.

    Args:
        content: The tar.
        name: Its name, for errors.

    Returns:
        Encoded images by image id.

    Raises:
        StorageError: The content is not a complete tar.
    """
    images: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:  # not compressed
            for member in tar:
                # Links and files with holes would unpack to more than the tar contains.
                if member.type not in PLAIN_FILES or member.issparse():
                    raise StorageError(
                        f"{name} is damaged: expected plain files, found a link or device."
                    )
                key, _, suffix = member.name.partition(".")
                file = tar.extractfile(member) if suffix not in NOT_IMAGES else None
                if file is not None:
                    images[key.replace("%2E", ".")] = file.read()
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise StorageError(f"{name} is damaged: expected a tar of images, {error}.") from None
    return images


def write_table(stream: Stream, groups: Iterable[Group], suffix: str) -> None:
    """Write a Parquet file whose first column is the image and whose others are the metadata.

    Each group becomes a row group. A metadata column called `image` is renamed `input_image`.

    Args:
        stream: Where the file is written; it is left open.
        groups: At least one; see `write_tar`.
        suffix: Suffix of the images' paths, without a dot.
    """
    tables = _prefetch(_with_images(table, images, suffix) for table, images in groups)
    first = next(tables)
    sink = pa.BufferedOutputStream(pa.PythonFile(stream, "w"), WRITE_BUFFER)
    # Images are compressed already, and their smallest and largest bytes are useless as statistics.
    with pq.ParquetWriter(
        sink, first.schema, use_dictionary=False, compression="none",
        write_statistics=first.column_names[1:],
    ) as writer:  # fmt: skip
        for table in chain([first], tables):
            writer.write_table(table)
    sink.detach()  # else the stream would be closed with it


def unpack_table(content: bytes, name: str) -> dict[str, bytes]:
    """Unpack the images of a Parquet file.

    Args:
        content: The file.
        name: Its name, for errors.

    Returns:
        Encoded images by image id.

    Raises:
        StorageError: The content is not a complete Parquet file, or has no images.
    """
    images: dict[str, bytes] = {}
    try:
        file, left = pq.ParquetFile(pa.BufferReader(content)), len(content)
        _check_codecs(file.metadata)
        for batch in file.iter_batches(IMAGES_PER_BATCH, columns=["image_id", IMAGE_COLUMN]):
            ids, found = batch.column("image_id"), batch.column(IMAGE_COLUMN).field("bytes")
            left -= sum(pc.sum(pc.binary_length(part)).as_py() or 0 for part in (ids, found))
            if left < 0:
                raise ValueError("its images are larger than the file")
            images.update(zip(ids.to_pylist(), found.to_pylist(), strict=True))
        return images
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise StorageError(f"{name} is damaged: expected a table of images, {reason}.") from None


def _check_codecs(metadata: pq.FileMetaData) -> None:
    """Check that columns are not compressed; `write_table` never does that."""
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            if metadata.row_group(group).column(column).compression != "UNCOMPRESSED":
                raise ValueError("its columns are compressed")


def _prefetch(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; a thread computes the next one while the caller uses the current one."""
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(next, items, None)
        while (item := future.result()) is not None:
            future = thread.submit(next, items, None)
            yield item


def _samples(table: pa.Table, images: Sequence[bytes], suffix: str) -> bytes:
    parts: list[bytes] = []
    for row, image in zip(_json_rows(table), images, strict=True):
        key = _key(row["image_id"])
        parts += _member(f"{key}.{suffix}", image)
        parts += _member(f"{key}.txt", row["text"].encode())
        parts += _member(f"{key}.json", row_as_json(row).encode())
    return b"".join(parts)


def _json_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table; maps, for which JSON has no type, are lists of keys and values."""
    names = [field.name for field in table.schema if has_maps(field.type)]
    rows: list[dict[str, Any]] = table.to_pylist()
    for name in names:
        column = loadable(table.select([name])).column(0).to_pylist()
        for row, value in zip(rows, column, strict=True):
            row[name] = value
    return rows


def _with_images(table: pa.Table, images: Sequence[bytes], suffix: str) -> pa.Table:
    paths = [f"{row}.{suffix}" for row in table.column("image_id").to_pylist()]
    parts = [pa.array(images, pa.binary()), pa.array(paths, pa.string())]
    taken = [IMAGE_COLUMN, *table.column_names]
    names = [free_name(name, taken) if name == IMAGE_COLUMN else name for name in taken[1:]]
    column = pa.StructArray.from_arrays(parts, fields=list(IMAGE_TYPE))
    packed = loadable(table.rename_columns(names)).add_column(0, IMAGE_COLUMN, column)
    metadata = table.schema.metadata or {}
    return packed.replace_schema_metadata({**metadata, b"huggingface": json.dumps(HUGGING_FACE)})


def _key(image_id: str) -> str:
    """The sample's name: dots of the id are escaped, because the first dot ends the name."""
    return image_id.replace(".", "%2E")


def _member(name: str, content: bytes) -> tuple[bytes, bytes, bytes]:
    """Header, content and padding: the output of `TarFile.addfile`, without its copies."""
    member = tarfile.TarInfo(name)  # reproducible: no owner, modified in 1970, readable by all
    member.size = len(content)
    padding = bytes(-len(content) % tarfile.BLOCKSIZE)
    fits = len(name) <= tarfile.LENGTH_NAME
    header = member.tobuf(tarfile.USTAR_FORMAT) if fits else member.tobuf(tarfile.PAX_FORMAT)
    return header, content, padding
