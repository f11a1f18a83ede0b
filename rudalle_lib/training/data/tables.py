"""Tables with a caption and an image per row: Parquet, CSV, JSONL or JSON.

An image is the content of a file, its path, its URL, or a struct of both, as Hugging Face
`datasets` writes its images. The readers are those of prompt tables, which expect damaged and
hostile files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, urljoin

from rudalle_lib.config.inputs import SourceConfig
from rudalle_lib.errors import DataError, PromptError, StorageError
from rudalle_lib.images.codecs import MAX_BYTES
from rudalle_lib.prompts.blocks import Block, Columns, TableOptions
from rudalle_lib.prompts.cells import is_missing, shorten
from rudalle_lib.prompts.part_files import read_parts
from rudalle_lib.prompts.table_readers import SUFFIXES, format_of
from rudalle_lib.storage.errors import public_url
from rudalle_lib.storage.filesystems import read_start
from rudalle_lib.storage.reading import Reading
from rudalle_lib.storage.urls import (
    STORAGE_SCHEMES,
    WEB,
    Url,
    UrlError,
    check_url,
    is_local_url,
    local_path,
    scheme_of,
    storable_url,
)
from rudalle_lib.training.data.listing import File, local_stamp
from rudalle_lib.training.data.rejects import RejectedError
from rudalle_lib.training.data.rows import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    BadRow,
    FoundRow,
    Row,
    damaged_file,
    find_column,
)

MEMORY_BYTES = 4 * 2**30
"""Most memory of the process that decodes Parquet: images of a row group of up to 1 GiB, which may
be there several times while they are unpacked."""


def is_table(name: str) -> bool:
    """Whether a file is a table, by its name."""
    return format_of(name) is not None


def of_one_format(files: Sequence[File]) -> list[File]:
    """The tables that hold the rows: those of the first format of `SUFFIXES` that there is."""
    suffixes = {file.name: found[0] for file in files if (found := format_of(file.name))}
    kept = min(suffixes.values(), key=SUFFIXES.index)
    return [file for file in files if suffixes.get(file.name) == kept]


def table_rows(
    files: Sequence[File], source: SourceConfig, captions: bool, inside: bool = False
) -> Iterator[Row]:
    """The rows of tables, in order.

    Args:
        files: the tables. A relative path in one of them is relative to its folder.
        source: the dataset.
        captions: whether a column of captions is needed.
        inside: whether images must be below the folder of their table, as in the layouts of
            Hugging Face.

    Raises:
        DataError: a table lacks a column, or the only one cannot be read.
        StorageError: the only table cannot be read, or the storage does not answer.
    """
    for file in files:
        shown = public_url(file.url)
        match = partial(_match, source=source, captions=captions, where=shown)
        options = TableOptions(
            match, [source.caption or "", *CAPTION_COLUMNS], limit=source.limit,
            memory_bytes=MEMORY_BYTES,
        )  # fmt: skip
        try:
            for block in read_parts(file.url, shown, options, source.reading()):
                yield from _rows(block, file, source.reading(rows=True), inside)
        except PromptError as error:
            if len(files) == 1:
                raise DataError(str(error)) from None
            yield damaged_file(file.name, error)
        except StorageError as error:
            if len(files) == 1:
                raise
            yield damaged_file(file.name, error)


def _match(names: Sequence[str], source: SourceConfig, captions: bool, where: str) -> Columns:
    found = {"image": find_column(names, source.image, IMAGE_COLUMNS, "image", where)}
    if captions:
        found["caption"] = find_column(names, source.caption, CAPTION_COLUMNS, "caption", where)
    return Columns(found)


def _rows(block: Block, file: File, rules: Reading, inside: bool) -> Iterator[Row]:
    """The rows of a block in order, those that cannot be parsed included."""
    captions = block.values.get("caption", [None] * len(block.numbers))
    rows: list[tuple[int, Row]] = []
    for number, caption, image in zip(block.numbers, captions, block.values["image"], strict=True):
        key = f"{file.name}, row {number}"
        try:
            rows.append((number, image_row(key, caption, image, file.url, rules, inside)))
        except RejectedError as error:
            rows.append((number, BadRow(key, error.reason, error.detail)))
    for bad in block.bad:
        rows.append((bad.number, BadRow(f"{file.name}, row {bad.number}", "bad_row", bad.detail)))
    for _, row in sorted(rows, key=lambda item: item[0]):
        yield row


# --- images ------------------------------------------------------------------------------------


def image_row(
    key: str, caption: Any, image: Any, table: str, rules: Reading, inside: bool = False
) -> FoundRow:
    """A row with the image in a cell.

    Args:
        key: name of the row.
        caption: its caption, not checked.
        image: a path or URL, the content of a file, or a struct of both.
        table: path or URL of the table.
        rules: for reading the image.
        inside: whether it must be below the folder of the table.

    Raises:
        RejectedError: there is no such image.
    """
    if isinstance(image, dict):
        content, path = image.get("bytes"), image.get("path")
        image = path if content is None else content
    if is_missing(image) or image == b"":
        raise RejectedError("no_image", "expected an image, found nothing")
    if isinstance(image, bytes):
        return FoundRow(key, caption, image)
    if not isinstance(image, str):
        raise RejectedError(
            "no_image", f"expected the path or URL of an image or its bytes, found {shorten(image)}"
        )
    url = _resolve(image.strip(), table, inside)
    stamp = [storable_url(url)]
    if is_local_url(url):
        stamp.append(local_stamp(local_path(url)))
    return FoundRow(key, caption, reader(url, rules), stamp, scheme_of(url) in WEB)


def reader(url: str, rules: Reading) -> Callable[[], bytes]:
    """What reads an image file: at most one byte more than images may have."""
    return partial(read_start, url, MAX_BYTES + 1, "image", rules)


def _resolve(path: str, table: str, inside: bool) -> Url:
    """The path or URL of an image that a row of a table names."""
    try:
        checked = check_url(path, STORAGE_SCHEMES)
    except UrlError as error:
        raise RejectedError("no_image", f"{shorten(path)} is no path or URL: {error}") from None
    relative = not scheme_of(checked) and not path.startswith(("/", "~"))
    if inside and (not relative or ".." in PurePosixPath(path).parts):
        detail = f"expected a file below the folder of its table, found {shorten(path)}"
        raise RejectedError("no_image", detail)
    if not relative:
        return checked
    if scheme_of(table) in WEB:
        return Url(urljoin(Url(table).full, quote(path)))
    folder, slash, _ = Url(table).full.rpartition("/")
    return Url(f"{folder}{slash}{path}")
