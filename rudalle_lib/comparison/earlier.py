"""The outputs that a pattern such as `s3://bucket/daily-*` means, and which of them came before."""

from __future__ import annotations

from fnmatch import fnmatchcase

from rudalle_lib.dataset.manifests import read_run_manifest
from rudalle_lib.errors import ConfigError, ShardError, StorageError
from rudalle_lib.storage.storage import Storage

WILDCARDS = "*?["
"""Characters that make a URL a pattern."""


def is_pattern(url: str) -> bool:
    """Whether a URL means several outputs."""
    return any(character in url for character in WILDCARDS)


def finished_outputs(pattern: str) -> list[Storage]:
    """The finished outputs that a pattern means, the one that finished first first.

    Args:
        pattern: a URL whose last part has wildcards: `*`, `?` and `[...]`.

    Raises:
        ConfigError: another part of it has wildcards.
        StorageError: the folder cannot be read.
    """
    folder, _, last = pattern.rstrip("/").rpartition("/")
    if is_pattern(folder):
        raise ConfigError(
            f"Only the last part of {pattern} may have wildcards, as in s3://bucket/daily-*."
        )
    parent = Storage(folder or ("/" if pattern.startswith("/") else "."))
    found = []
    for name in parent.entries():
        if fnmatchcase(name, last):
            storage = Storage(parent.url(name))
            if (finished := _finished(storage)) is not None:
                found.append((finished, storage.url(), storage))
    return [storage for *_, storage in sorted(found, key=lambda item: item[:2])]


def output_before(pattern: str, after: Storage) -> Storage:
    """The output that finished last before another one, among those that a pattern means.

    Raises:
        ConfigError: there is none.
        StorageError, ShardError: the other one has no finished run.
    """
    end = _finished(after)
    earlier = [
        storage
        for storage in finished_outputs(pattern)
        if storage.url() != after.url() and (end is None or (_finished(storage) or "") < end)
    ]
    if not earlier:
        raise ConfigError(
            f"No finished output of {pattern} is older than {after.public_path()}; there is "
            "nothing to compare it with."
        )
    return earlier[-1]


def newest_two(pattern: str) -> tuple[Storage, Storage]:
    """The last two outputs of a pattern, the older one first.

    Raises:
        ConfigError: there are fewer.
    """
    found = finished_outputs(pattern)
    if len(found) < 2:
        raise ConfigError(
            f"Expected at least two finished outputs of {pattern} to compare, found {len(found)}."
        )
    return found[-2], found[-1]


def _finished(storage: Storage) -> str | None:
    try:
        run = read_run_manifest(storage)
    except (ShardError, StorageError):  # a folder of something else, or a damaged one
        return None
    return None if run is None else run.finished
