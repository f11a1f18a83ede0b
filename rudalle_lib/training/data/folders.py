"""A folder of images, each with a text file of the same name that holds its caption."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby
from pathlib import PurePosixPath

from rudalle_lib.config.inputs import SourceConfig
from rudalle_lib.training.data.listing import File
from rudalle_lib.training.data.rejects import RejectedError
from rudalle_lib.training.data.rows import IMAGE_SUFFIXES, BadRow, FoundRow, Row, read_caption
from rudalle_lib.training.data.tables import reader

CAPTION_SUFFIX = ".txt"
"""End of the names of files with a caption."""


def is_image(name: str) -> bool:
    """Whether a file is an image, by its name."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def folder_rows(files: Iterable[File], source: SourceConfig, captions: bool) -> Iterator[Row]:
    """The images of a folder, in the order of their names.

    Args:
        files: in folders, each after the other.
        source: the dataset.
        captions: whether an image needs a caption.
    """
    for _, folder in groupby(files, lambda file: str(PurePosixPath(file.name).parent)):
        by_name: dict[str, list[File]] = {}
        for file in folder:
            if is_image(file.name) or file.name.lower().endswith(CAPTION_SUFFIX):
                by_name.setdefault(file.name.rpartition(".")[0], []).append(file)
        for name in sorted(by_name):
            yield _row(by_name[name], source, captions)


def _row(files: list[File], source: SourceConfig, captions: bool) -> Row:
    images = [file for file in files if is_image(file.name)]
    texts = [file for file in files if file not in images]
    key = (images or texts)[0].name
    try:
        if not images:
            detail = "expected an image of this name beside the caption, found none"
            raise RejectedError("no_image", detail)
        if len(images) > 1:
            names = " and ".join(PurePosixPath(file.name).name for file in images)
            raise RejectedError("same_name", f"expected one image of this name, found {names}")
        if not texts and captions:
            name = PurePosixPath(key).with_suffix(CAPTION_SUFFIX).name
            raise RejectedError("no_caption", f"expected {name} with a caption, found none")
    except RejectedError as error:
        return BadRow(key, error.reason, error.detail)
    rules = source.reading()
    caption = partial(read_caption, texts[0].url, rules) if texts and captions else None
    stamp = [images[0].stamp, texts[0].stamp if texts else ""]
    return FoundRow(key, caption, reader(images[0].url, rules), stamp)
