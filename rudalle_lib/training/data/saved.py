"""A folder that Hugging Face `datasets` wrote with `save_to_disk`; the package reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rudalle_lib.config.inputs import SourceConfig
from rudalle_lib.errors import DataError
from rudalle_lib.storage import bounds
from rudalle_lib.storage.errors import public_url, translate_errors
from rudalle_lib.storage.urls import check_url, is_local_url, local_path
from rudalle_lib.training.data.listing import in_split
from rudalle_lib.training.data.rejects import RejectedError
from rudalle_lib.training.data.rows import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    BadRow,
    Row,
    find_column,
)
from rudalle_lib.training.data.tables import image_row

MARKS = ("state.json", "dataset_dict.json")
"""Files by which such a folder is recognised: of one dataset, or of its splits."""

ROWS_AT_ONCE = 16
"""Rows whose images are in memory."""


def saved_rows(source: SourceConfig, captions: bool) -> Iterator[Row]:
    """The rows of a saved dataset, in order.

    Args:
        source: the dataset; a folder on this machine.
        captions: whether a column of captions is needed.

    Raises:
        DataError: it is not on this machine, lacks a column or split, or `datasets` cannot read it.
    """
    name = public_url(source.uri)
    with translate_errors("read the dataset", source.uri):
        url = check_url(source.uri)
        bounds.check_allowed(url, bounds.INPUTS)
    if not is_local_url(url):
        raise DataError(
            f"{name} was written with save_to_disk, which is read from folders of this machine "
            "only; copy it, or write it as Parquet."
        )
    for split, dataset in _splits(local_path(url), source, name):
        column = find_column(dataset.column_names, source.image, IMAGE_COLUMNS, "image", name)
        text = None
        if captions:
            names = dataset.column_names
            text = find_column(names, source.caption, CAPTION_COLUMNS, "caption", name)
        table = dataset.with_format("arrow")
        for start in range(0, len(dataset), ROWS_AT_ONCE):
            values = table[start : start + ROWS_AT_ONCE]
            images = values.column(column).to_pylist()
            texts = values.column(text).to_pylist() if text else [None] * len(images)
            for place, (caption, image) in enumerate(zip(texts, images, strict=True), start + 1):
                key = f"{split}row {place}"
                try:
                    folder = f"{local_path(url)}/"
                    rules = source.reading(rows=True)
                    yield image_row(key, caption, image, folder, rules)
                except RejectedError as error:
                    yield BadRow(key, error.reason, error.detail)


def _splits(folder: str, source: SourceConfig, name: str) -> Iterator[tuple[str, Any]]:
    """The datasets of the splits that are read, each with the beginning of the keys of its rows."""
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{name} was written by Hugging Face datasets with save_to_disk, which reads it: "
            "`pip install datasets`, or write the dataset as Parquet."
        ) from None
    try:
        loaded = datasets.load_from_disk(folder)
    except Exception as error:  # the package raises errors of many libraries
        raise DataError(f"{name} cannot be read by Hugging Face datasets: {error}") from None
    if not isinstance(loaded, dict):
        yield "", loaded
        return
    for split in in_split(list(loaded), source.split, name):
        yield f"{split}, ", loaded[split]
