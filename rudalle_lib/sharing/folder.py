"""A folder or bucket as the target of a push: a plain copy of what is shared."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from rudalle_lib.dataset import layout
from rudalle_lib.digests import DigestingStream
from rudalle_lib.errors import StorageError
from rudalle_lib.sharing.contents import SharedFile
from rudalle_lib.storage.storage import Storage

LAST = layout.CARD
"""The page that is written after all others."""


class FolderTarget:
    """A folder, or a prefix in a bucket."""

    def __init__(self, url: str) -> None:
        """Connect to it.

        Raises:
            StorageError: The URL is not allowed.
        """
        self._storage = Storage(url)
        self.name = self._storage.public_path()

    def existing(self) -> frozenset[str]:
        """The paths of all files in it.

        Raises:
            StorageError: It is the output of a run, whose files a push would mix with its own.
        """
        found = frozenset(self._storage.list())
        if any(path.startswith(f"{layout.SHARDS_FOLDER}/") for path in found):
            raise StorageError(f"{self.name} is the output of a run; expected another folder.")
        return found

    def prepare(self) -> None:
        """Do nothing: folders are created with their first file."""

    def send(self, file: SharedFile) -> int:
        """Write a data file, which appears when it is complete."""
        with self._storage.writing(file.path) as stream, DigestingStream(stream) as counting:
            file.write(counting)
            return counting.written

    def finish(self, pages: Mapping[str, bytes], outdated: Collection[str], message: str) -> str:
        """Write the pages, the card last, and delete outdated files."""
        for path in sorted(pages, key=lambda path: (path == LAST, path)):
            self._storage.write_bytes(path, pages[path])
        for path in outdated:
            self._storage.delete(path)
            self._storage.prune(path.rpartition("/")[0])
        self._storage.sync()
        return self.name
