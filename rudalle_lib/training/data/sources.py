"""Which form a dataset has, and its rows.

| form | is recognised by |
| --- | --- |
| ours | a folder `shards/` with manifests, as `rudalle-flows run` writes them |
| saved | `state.json` or `dataset_dict.json`, as `save_to_disk` of Hugging Face `datasets` writes them |
| tars | files `*.tar`: WebDataset |
| metadata | `metadata.csv`, `.jsonl` or `.parquet`: the ImageFolder of Hugging Face |
| folder | an image with a text file of the same name beside it |
| tables | Parquet, CSV, JSONL or JSON with a column of images or of their paths |
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from rudalle_lib.config.inputs import SourceConfig
from rudalle_lib.dataset import layout
from rudalle_lib.errors import DataError
from rudalle_lib.storage import bounds
from rudalle_lib.storage.errors import public_url, translate_errors
from rudalle_lib.storage.filesystems import connect, list_folder
from rudalle_lib.storage.urls import WEB, scheme_of
from rudalle_lib.training.data import saved
from rudalle_lib.training.data.folders import CAPTION_SUFFIX, folder_rows, is_image
from rudalle_lib.training.data.listing import File, in_split, list_files
from rudalle_lib.training.data.own import own_rows
from rudalle_lib.training.data.rows import Row
from rudalle_lib.training.data.tables import is_table, of_one_format, table_rows
from rudalle_lib.training.data.tars import tar_rows

Form = Literal["ours", "saved", "tars", "metadata", "folder", "tables"]
"""What a dataset is."""

TAR_SUFFIX = ".tar"
"""End of the names of WebDataset files."""

METADATA = ("metadata.parquet", "metadata.jsonl", "metadata.csv")
"""Names of the tables beside image files by which Hugging Face `datasets` finds captions."""

NOT_DATA = ("dataset_infos.json", "dataset_info.json", "croissant.json", "config.json")
"""Files of datasets that are no tables of rows, although their names could be such."""

BESIDE_IMAGES = ("metadata", "rejects", "plan rejects", "plan", "stage")
"""Kinds of files of our datasets that hold no images, which a shared copy also has."""

MAX_TABLES = 100_000
"""The most tables or tars of a dataset."""

LOOKED_FOR = (
    "shards/*.json of a dataset that rudalle-flows made, state.json of one saved by Hugging Face "
    f"datasets, *.tar, {', '.join(METADATA)}, images (.png, .jpg, .webp) with a .txt file of the "
    "same name, and tables (.parquet, .csv, .jsonl, .json)"
)
"""What the error says about a folder that has none of it."""


@dataclass
class _Found:
    """The files of a dataset by what they could be."""

    saved: bool = False
    tars: list[File] = field(default_factory=list)
    metadata: list[File] = field(default_factory=list)
    tables: list[File] = field(default_factory=list)
    images: int = 0
    pairs: int = 0
    names: list[str] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)

    def form(self) -> Form | None:
        """What the dataset is."""
        forms: tuple[tuple[Form, bool], ...] = (
            ("saved", self.saved),
            ("tars", bool(self.tars)),
            ("metadata", bool(self.metadata)),
            ("folder", self.pairs > 0),
            ("tables", bool(self.tables)),
            ("folder", self.images > 0),
        )
        return next((form for form, found in forms if found), None)


def read_rows(source: SourceConfig, captions: bool = True) -> Iterator[Row]:
    """The rows of a dataset, in an order that is always the same.

    Neither captions nor images are checked, and images in files of their own are not read.

    Args:
        source: the dataset.
        captions: whether rows need captions.

    Raises:
        DataError: its form is not recognised, it lacks a column or a split, or it is damaged as a
            whole.
        StorageError: it cannot be read.
    """
    found = recognise(source)
    form, files = found.form, found.files
    where = public_url(source.uri)
    rows: Iterator[Row]
    if form == "ours":
        rows = own_rows(source, captions)
    elif form == "saved":
        rows = saved.saved_rows(source, captions)
    elif form == "folder":
        rows = folder_rows(_in_split(source, found.folders, where), source, captions)
    else:
        kept = set(in_split([file.name for file in files], source.split, where))
        chosen = [file for file in files if file.name in kept]
        if form == "tars":
            rows = tar_rows(chosen, source, captions)
        else:
            rows = table_rows(of_one_format(chosen), source, captions, form == "metadata")
    return islice(rows, source.limit)


class Recognised(NamedTuple):
    """What a dataset is; its tables or tars; and the folders directly in it."""

    form: Form
    files: Sequence[File] = ()
    folders: Collection[str] = ()


def recognise(source: SourceConfig) -> Recognised:
    """Find out what a dataset is.

    Raises:
        DataError: it is none of the forms.
        StorageError: it cannot be listed.
    """
    if _is_ours(source.uri):
        return Recognised("ours")
    found = _look(_listed(source))
    form = found.form()
    if form is None:
        names = ", ".join(found.names) or "no files"
        raise DataError(
            f"{public_url(source.uri)} is no dataset to learn from. Looked for {LOOKED_FOR}; "
            f"found {names}."
        )
    files = {"tars": found.tars, "metadata": found.metadata, "tables": found.tables}
    return Recognised(form, files.get(form, ()), found.folders)


def _is_ours(uri: str) -> bool:
    """Whether there are manifests of finished shards; asks for one folder only."""
    if scheme_of(uri) in (*WEB, "hf"):
        return False
    with translate_errors("list", uri):
        file_system, root = connect(uri, bound=bounds.INPUTS)
        try:
            names = list_folder(file_system, f"{root}/{layout.SHARDS_FOLDER}")
        except NotADirectoryError:
            return False
    paths = (f"{layout.SHARDS_FOLDER}/{PurePosixPath(name).name}" for name in names)
    return any(layout.index_of(path, "manifest") is not None for path in paths)


def _listed(source: SourceConfig) -> Iterable[File]:
    if scheme_of(source.uri) in WEB:  # servers have no lists of their files
        return [File(PurePosixPath(public_url(source.uri)).name, source.uri, "")]
    return list_files(source.uri)


def _look(files: Iterable[File]) -> _Found:
    found = _Found()
    last: set[str] = set()
    folder = ""
    for file in files:
        path = PurePosixPath(file.name)
        name = path.name.lower()
        if str(path.parent) != folder:
            folder, last = str(path.parent), set()
        if len(found.names) < 10:
            found.names.append(file.name)
        if "/" in file.name:
            found.folders.add(path.parts[0])
        ours = layout.parse(file.name)
        if ours is not None and ours.kind in BESIDE_IMAGES:
            continue
        found.saved |= name in saved.MARKS and len(path.parts) == 1
        if name.endswith(TAR_SUFFIX):
            found.tars.append(file)
        elif name in METADATA:
            found.metadata.append(file)
        elif is_table(name):
            if name not in NOT_DATA:
                found.tables.append(file)
        elif is_image(name) or name.endswith(CAPTION_SUFFIX):
            found.images += is_image(name)
            stem = name.rpartition(".")[0]
            found.pairs += stem in last
            last.add(stem)
        if len(found.tables) + len(found.tars) > MAX_TABLES:
            raise DataError(f"It has more than {MAX_TABLES:,} tables or tars: write larger ones.")
    return found


def _in_split(source: SourceConfig, folders: Collection[str], where: str) -> Iterator[File]:
    """The images and captions of a split, which is a folder directly in the dataset."""
    kept = set(in_split(sorted(folders), source.split, where))
    for file in list_files(source.uri):
        folder, slash, _ = file.name.partition("/")
        if folder in kept or (not slash and source.split is None):
            yield file
