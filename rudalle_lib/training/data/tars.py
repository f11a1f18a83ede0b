"""WebDataset: tars in which files whose names are equal up to the first dot are one sample.

A sample has an image, and a caption in a text file or in a JSON file. The tar is read as a stream,
one sample at a time.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from rudalle_lib.config.inputs import SourceConfig
from rudalle_lib.dataset.archives import PLAIN_FILES
from rudalle_lib.digests import digest_of_bytes
from rudalle_lib.errors import DamagedError, StorageError
from rudalle_lib.images.codecs import MAX_BYTES
from rudalle_lib.storage.errors import public_url, translate_errors
from rudalle_lib.storage.filesystems import open_input
from rudalle_lib.training.data.listing import File
from rudalle_lib.training.data.rejects import RejectedError
from rudalle_lib.training.data.rows import (
    CAPTION_COLUMNS,
    IMAGE_SUFFIXES,
    MAX_CAPTION_BYTES,
    BadRow,
    FoundRow,
    Row,
    damaged_file,
    decode_caption,
)

MAX_JSON_BYTES = 2**20
"""The largest JSON file of a sample that is read."""


@dataclass
class _Sample:
    """The files of one sample; an image or a text that is too large has no content."""

    key: str
    images: dict[str, bytes | None] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)


def tar_rows(files: Sequence[File], source: SourceConfig, captions: bool) -> Iterator[Row]:
    """The samples of tars, in order.

    Args:
        files: the tars.
        source: the dataset.
        captions: whether a sample needs a caption.

    Raises:
        StorageError: the only tar cannot be read, or the storage does not answer.
    """
    for file in files:
        seen: set[str] = set()
        try:
            for sample in _samples(file, source):
                digest = digest_of_bytes(sample.key.encode(errors="replace"))[:16]
                yield _row(sample, file, source, captions, again=digest in seen)
                seen.add(digest)
        except StorageError as error:
            if len(files) == 1 and not seen:
                raise
            yield damaged_file(file.name, error)


def _samples(file: File, source: SourceConfig) -> Iterator[_Sample]:
    """The samples of a tar.

    Raises:
        DamagedError: it is no tar, or is cut off; the samples before that were given.
        StorageError: it cannot be read.
    """
    name = public_url(file.url)
    with (
        translate_errors("read the dataset", file.url),
        open_input(file.url, "dataset", source.reading()) as stream,
    ):
        try:
            yield from _in_stream(stream)
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
            reason = str(error).rstrip(".")
            raise DamagedError(f"{name} is damaged: expected a tar of images, {reason}.") from None


def _in_stream(stream: BinaryIO) -> Iterator[_Sample]:
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        sample: _Sample | None = None
        for member in tar:
            # Links and files with holes would unpack to more than the tar contains.
            if member.type not in PLAIN_FILES or member.issparse():
                continue
            folder, slash, name = member.name.rpartition("/")
            if name.startswith("."):
                continue
            stem, _, suffix = name.partition(".")
            key, suffix = f"{folder}{slash}{stem}", suffix.lower()
            if sample is None or key != sample.key:
                if sample is not None:
                    yield sample
                sample = _Sample(key)
            _add(sample, suffix, tar, member)
        if sample is not None:
            yield sample


def _add(sample: _Sample, suffix: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    is_image = f".{suffix.rpartition('.')[2]}" in IMAGE_SUFFIXES
    most = MAX_BYTES if is_image else MAX_JSON_BYTES
    content = None
    if member.size <= most and (stream := tar.extractfile(member)) is not None:
        content = stream.read()
        if len(content) < member.size:
            raise EOFError("it is cut off")
    if is_image:
        sample.images[suffix] = content
    elif content is not None:
        sample.texts[suffix] = content


def _row(sample: _Sample, file: File, source: SourceConfig, captions: bool, again: bool) -> Row:
    key = f"{file.name}, {sample.key.replace('%2E', '.')}"
    try:
        if again:
            detail = "an earlier sample of this tar has the same name; that one is used"
            raise RejectedError("same_name", detail)
        image = _image(sample, source)
        caption = _caption(sample, source) if captions else None
    except RejectedError as error:
        return BadRow(key, error.reason, error.detail)
    return FoundRow(key, caption, image)


def _image(sample: _Sample, source: SourceConfig) -> bytes:
    images = sample.images
    if source.image is not None:
        images = {name: image for name, image in images.items() if name == source.image.lower()}
    if not images:
        raise RejectedError("no_image", f"expected a file {sample.key}.png, .jpg or .webp")
    if len(images) > 1:
        detail = f"expected one image, found {' and '.join(sorted(images))}; name one as `image`"
        raise RejectedError("same_name", detail)
    content = next(iter(images.values()))
    if content is None:
        raise RejectedError("bad_image", f"its file has more than {MAX_BYTES:,} bytes")
    return content


def _caption(sample: _Sample, source: SourceConfig) -> Any:
    """The caption: in the configured column or suffix, else of our names, else the text file."""
    values = _json(sample.texts.get("json"))
    if source.caption is not None:
        if source.caption in values:
            return values[source.caption]
        return _text(sample.texts.get(source.caption.removeprefix(".").lower()))
    if CAPTION_COLUMNS[0] in values:
        return values[CAPTION_COLUMNS[0]]
    if "txt" in sample.texts:
        return _text(sample.texts["txt"])
    return next((values[name] for name in CAPTION_COLUMNS if name in values), None)


def _text(content: bytes | None) -> str | None:
    return None if content is None else decode_caption(content[: MAX_CAPTION_BYTES + 1])


def _json(content: bytes | None) -> dict[str, Any]:
    if content is None:
        return {}
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        raise RejectedError("bad_row", "the JSON file of the sample cannot be read") from None
    return values if isinstance(values, dict) else {}
