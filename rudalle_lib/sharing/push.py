"""Pushing a dataset: data files first, those that are missing; last, all at once, the pages.

A target that was pushed to before is brought up to date: what it has is not sent again, and data
files that the dataset no longer has are deleted in the same step that replaces the pages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from rudalle_lib.dataset import layout
from rudalle_lib.errors import StorageError
from rudalle_lib.sharing.contents import PAGES, Contents, SharedFile, is_shared_data


class Target(Protocol):
    """Where a dataset is pushed to."""

    name: str
    """What people call it."""

    def existing(self) -> frozenset[str]:
        """The paths of all its files; none if it does not exist yet."""

    def prepare(self) -> None:
        """Create it if it does not exist."""

    def send(self, file: SharedFile) -> int:
        """Send a data file, unless the target has its content; returns its size in bytes."""

    def finish(self, pages: Mapping[str, bytes], outdated: Collection[str], message: str) -> str:
        """Make everything visible, replace the pages, delete outdated files; returns a URL."""


@dataclass(frozen=True)
class Pushed:
    """What a push did, or would do.

    Attributes:
        url: The page or folder to look at.
        new: Data files that were missing.
        unchanged: Data files that were there.
        deleted: Data files that the dataset no longer has.
        size: Of the new files in bytes, in a dry run about.
        images: Number of images of the dataset.
    """

    url: str
    new: tuple[str, ...]
    unchanged: tuple[str, ...]
    deleted: tuple[str, ...]
    size: int
    images: int


def push(
    contents: Contents,
    target: Target,
    dry_run: bool = False,
    on_file: Callable[[SharedFile, int], None] = lambda file, size: None,
) -> Pushed:
    """Push a dataset; may be repeated after an interruption.

    Args:
        contents: The dataset.
        target: Where it is pushed to.
        dry_run: Only find out what would be done; nothing is created, sent or deleted.
        on_file: Called after each new file with its size in bytes.

    Raises:
        StorageError: The target holds something else, or cannot be written.
    """
    existing = target.existing()
    _check_ours(target.name, existing)
    if not dry_run:
        target.prepare()
    new, unchanged = [], []
    total = 0
    for file in contents.data_files():
        if file.path in existing:
            unchanged.append(file.path)
            continue
        new.append(file.path)
        size = file.size if dry_run else target.send(file)
        total += size
        on_file(file, size)
    wanted = {*new, *unchanged}
    deleted = sorted(path for path in existing - wanted if is_shared_data(path))
    images, url = contents.run.totals.kept, target.name
    if not dry_run:
        message = f"{contents.run.name}: {images:,} images, by rudalle-flows"
        url = target.finish(contents.pages(), deleted, message)
    return Pushed(url, tuple(new), tuple(unchanged), tuple(deleted), total, images)


def _check_ours(name: str, existing: Collection[str]) -> None:
    """Check that nothing of a stranger's is replaced.

    Raises:
        StorageError: The target has files that a push would replace and that none has written.
    """
    if layout.RUN_MANIFEST in existing and any(map(is_shared_data, existing)):
        return
    taken = sorted(path for path in PAGES if path in existing)
    if taken:
        raise StorageError(
            f"{name} already has {', '.join(taken)}, but was not pushed by rudalle-flows; choose "
            "another name, so that nothing in it is replaced."
        )
