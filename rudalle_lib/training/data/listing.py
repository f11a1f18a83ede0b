"""The files of a dataset that is a folder, in order, with what tells whether they have changed."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from rudalle_lib.errors import DataError
from rudalle_lib.prompts.part_files import WILDCARDS
from rudalle_lib.storage import bounds
from rudalle_lib.storage.errors import translate_errors
from rudalle_lib.storage.filesystems import connect, is_local, stamp_of

OTHER_SPLITS = ("validation", "test")
"""Splits that are not learnt from unless they are asked for."""

_SPLIT_WORDS = {
    "train": "train|training",
    "validation": "validation|valid|val|dev",
    "test": "test|testing|eval|evaluation",
}
"""Words in names of files that stand for splits, as Hugging Face `datasets` reads them."""

_SPLITS = {
    split: re.compile(rf"(?:^|[^a-z])(?:{words})(?:[^a-z]|$)")
    for split, words in _SPLIT_WORDS.items()
}


class File(NamedTuple):
    """A file of a dataset.

    Attributes:
        name: its path within the dataset.
        url: its path or URL.
        stamp: changes if the file is replaced; empty if that is not known.
    """

    name: str
    url: str
    stamp: str


def list_files(url: str, bounded: bool = True) -> Iterator[File]:
    """The files below a folder, of a pattern, or the one that is there, in order.

    Hidden files and folders, whose names begin with a dot or `_`, are left out, links to folders
    are not followed. The files of a folder precede those of its folders, and only the names of one
    folder are in memory.

    Args:
        url: a path or URL, or a pattern such as data/*.parquet.
        bounded: whether RUDALLE_ALLOW_INPUTS applies.

    Raises:
        StorageError: it cannot be listed.
    """
    with translate_errors("list", url):
        file_system, root = connect(url, bound=bounds.INPUTS if bounded else None)
        base = url.rstrip("/") or "/"
        if file_system.isfile(root):
            yield File(PurePosixPath(root).name, url, _stamp(file_system, root))
            return
        if any(letter in root for letter in WILDCARDS) and not file_system.exists(root):
            yield from _matching(file_system, root, url)
            return
        walk = _walk_local(root) if is_local(file_system) else _walk(file_system, root)
        for folder, names in walk:
            inner = folder.removeprefix(root).strip("/")
            for name, stamp in names:
                path = f"{inner}/{name}" if inner else name
                yield File(path, f"{base.rstrip('/')}/{path}", stamp)


def _matching(file_system: Any, pattern: str, url: str) -> Iterator[File]:
    """The files that match a pattern; their names are relative to its fixed part."""
    root, base = _fixed_part(pattern), _fixed_part(str.__str__(url))
    for path in sorted(file_system.glob(pattern)):
        if file_system.isfile(path):
            name = path.removeprefix(root)
            yield File(name, base + name, _stamp(file_system, path))


def _fixed_part(pattern: str) -> str:
    """The folder that a pattern begins with, with a slash at its end."""
    first = min(place for letter in WILDCARDS if (place := pattern.find(letter)) >= 0)
    folder, slash, _ = pattern[:first].rpartition("/")
    return folder + slash


def _stamp(file_system: Any, path: str) -> str:
    return local_stamp(path) if is_local(file_system) else stamp_of(file_system.info(path))


def _walk_local(root: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    folders, files = [], []
    with os.scandir(root) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith((".", "_")):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                files.append((entry.name, local_stamp(entry.path)))
    yield root, files
    for folder in folders:
        yield from _walk_local(folder)


def _walk(file_system: Any, root: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    for folder, folders, files in file_system.walk(root, detail=True):
        for name in [name for name in folders if name.startswith((".", "_"))]:
            del folders[name]
        ordered = sorted(folders)
        for name in ordered:
            folders[name] = folders.pop(name)
        shown = (name for name in sorted(files) if name and not name.startswith((".", "_")))
        yield folder, [(name, stamp_of(files[name])) for name in shown]


def local_stamp(path: str) -> str:
    """Size and time of change of a local file; empty if there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


# --- splits ------------------------------------------------------------------------------------


def split_in(name: str) -> str | None:
    """The split that the name of a file or split stands for, None if for none."""
    lower = name.lower()
    return next((split for split, words in _SPLITS.items() if words.search(lower)), None)


def in_split(names: Collection[str], wanted: str | None, where: str) -> list[str]:
    """Those of some files, or of some splits, that are read.

    Args:
        names: paths within the dataset, or names of splits.
        wanted: the split in the configuration; None leaves out `OTHER_SPLITS` if there is another.
        where: the dataset, for the error.

    Raises:
        DataError: nothing is of this split.
    """
    if wanted is None:
        others = [name for name in names if split_in(name) not in OTHER_SPLITS]
        return others or list(names)
    kind = split_in(wanted)
    found = [n for n in names if n == wanted or (kind is not None and split_in(n) == kind)]
    if not found:
        shown = ", ".join(list(names)[:10])
        raise DataError(f"{where} has no split {wanted!r}; expected it in a name of {shown}.")
    return found
