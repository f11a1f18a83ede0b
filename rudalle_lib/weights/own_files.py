"""The files of weights of one's own (`weights.models`): in a folder, or fetched from a URL once.

What is fetched lies in the user's cache, in a folder for each version of the files, so that weights
that are replaced at the URL are fetched again.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.digests import digest_of
from rudalle_lib.errors import WeightsError
from rudalle_lib.registry import ModelEntry
from rudalle_lib.storage import bounds
from rudalle_lib.storage.errors import public_url, translate_errors
from rudalle_lib.storage.filesystems import list_stamps, open_input
from rudalle_lib.storage.urls import is_local_url, local_path
from rudalle_lib.weights.digest_cache import cache_folder


def own_files(entry: ModelEntry, weights: WeightsConfig) -> dict[str, Path]:
    """The files of weights of one's own, by role; fetches those of a URL that are not here yet.

    Args:
        entry: of `registry.from_folder`.
        weights: with `offline` nothing is fetched.

    Raises:
        WeightsError: the folder or a file in it does not exist.
        StorageError: the storage does not answer, or denies the request.
    """
    url = entry.folder or ""
    if not is_local_url(url):
        return _fetched(entry, weights)
    folder = Path(os.path.expanduser(local_path(url)))
    if not folder.is_dir():
        raise _missing(entry, f"there is no folder {folder} on this machine")
    lacking = [name for name in entry.files.values() if not (folder / name).is_file()]
    if lacking:
        raise _missing(entry, f"{folder} has no file {lacking[0]}")
    return {role: folder / name for role, name in entry.files.items()}


def check_same_network(entry: ModelEntry, files: Mapping[str, Path], sizes: Mapping[str, Any],
                       found: Mapping[str, Any]) -> None:  # fmt: skip
    """Check that weights of one's own have the network of their base.

    Args:
        entry: of the weights.
        files: their files by role.
        sizes: of the network of the base.
        found: the content of their `config.json`.

    Raises:
        WeightsError: a size differs; names all of them.
    """
    other = [
        f"{key} is {found[key]!r}, expected {_plain(value)!r}"
        for key, value in sizes.items()
        if key in found and found[key] != _plain(value)
    ]
    if other:
        raise WeightsError(
            f"weights.models.{entry.name}: {files['config']} does not describe the network of "
            f"base {entry.base}: {'; '.join(other)}. Name the model that was fine-tuned as base"
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _missing(entry: ModelEntry, what: str) -> WeightsError:
    return WeightsError(
        f"weights.models.{entry.name}: {what}; expected a folder with "
        f"{', '.join(entry.files.values())}, as `rudalle-flows fine-tune` writes it"
    )


def _fetched(entry: ModelEntry, weights: WeightsConfig) -> dict[str, Path]:
    url = str.__str__(entry.folder or "").rstrip("/")
    cache = cache_folder()
    if cache is None:
        raise WeightsError(
            f"weights.models.{entry.name}: there is no folder to fetch {public_url(url)} to; set "
            "XDG_CACHE_HOME"
        )
    copies = cache / "models" / digest_of(url)
    if weights.offline:
        return {role: _newest(entry, copies) / name for role, name in entry.files.items()}
    stamps = list_stamps(url, bounds.INPUTS)
    lacking = [name for name in entry.files.values() if name not in stamps]
    if lacking:
        raise _missing(entry, f"{public_url(url)} has no file {lacking[0]}")
    versions = {name: stamps[name] for name in entry.files.values()}
    folder = copies / digest_of(versions)
    try:
        if not folder.is_dir():
            _fetch(url, list(versions), folder)
    except OSError as error:
        raise WeightsError(
            f"weights.models.{entry.name}: cannot write {error.filename or folder}: "
            f"{error.strerror}"
        ) from error
    return {role: folder / name for role, name in entry.files.items()}


def _newest(entry: ModelEntry, copies: Path) -> Path:
    """The version that was fetched last."""
    with suppress(OSError):
        found = [path for path in copies.iterdir() if "." not in path.name]
        if found:
            return max(found, key=lambda path: path.stat().st_mtime)
    raise WeightsError(
        f"weights.models.{entry.name}: weights.offline is set, and {public_url(entry.folder or '')}"
        " has not been fetched before; copy it to this machine, and name the copy"
    )


def _fetch(url: str, names: list[str], folder: Path) -> None:
    """Copy files of a URL into a folder, which appears when all of them are there."""
    fresh = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
    fresh.mkdir(parents=True)
    try:
        for name in names:
            source = f"{url}/{name}"
            with (
                (fresh / name).open("wb") as target,
                translate_errors("read the weights", source),
                open_input(source, "weights") as stream,
            ):
                shutil.copyfileobj(stream, target, 8 * 2**20)
        with suppress(FileExistsError, NotADirectoryError):
            fresh.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was faster
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
