"""Writes the files of a report, and deletes those that it no longer has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rudalle_lib.dataset import layout
from rudalle_lib.dataset.manifests import read_run_manifest
from rudalle_lib.dataset.ownership import check_replaceable
from rudalle_lib.digests import DigestingStream
from rudalle_lib.errors import ShardError
from rudalle_lib.pipeline.recorded_run import is_there
from rudalle_lib.schema.records import DataFile
from rudalle_lib.storage.storage import Storage


class ReportFiles:
    """Writes the files of a report.

    Attributes:
        written: description of each file, by path.
    """

    def __init__(self, storage: Storage) -> None:
        """Note which files the last report wrote.

        Raises:
            StorageError: there is a `run.json` that no run has written.
        """
        self._storage = storage
        self._before = _files_of_last_report(storage)
        self.written: dict[str, DataFile] = {}

    def write(self, path: str, content: bytes) -> None:
        """Write a file of the report, or replace one of ours.

        Raises:
            StorageError: a file of that name is somebody else's, or it cannot be written.
        """
        self._storage.write_bytes(path, content, self._replaceable(path))
        self.written[path] = DataFile.of(path, content)

    @contextmanager
    def writing(self, path: str) -> Iterator[DigestingStream]:
        """Open a stream for writing a large file of the report, as `write` does.

        Raises:
            StorageError: a file of that name is somebody else's, or it cannot be written.
        """
        before = self._replaceable(path)
        with self._storage.writing(path, before) as stream, DigestingStream(stream) as digesting:
            yield digesting
        self.written[path] = DataFile(path, digesting.written, digesting.hexdigest())

    def keep(self, path: str) -> bool:
        """Keep a file of the last report whose name stands for its content, if it is there.

        Returns:
            Whether it was kept; else it is to be written.
        """
        file = self._before.get(path)
        if file is None or not is_there(self._storage, file):
            return False
        self.written[path] = file
        return True

    def _replaceable(self, path: str) -> str | None:
        """The version of a file that may be replaced; found before the lease is proved.

        A request of this run that arrives after another run has taken over then changes nothing.

        Raises:
            StorageError: the file is somebody else's.
        """
        version, name = self._storage.version(path), layout.parse(path)
        if path not in self._before and (name is None or name.kind != "merged"):
            check_replaceable(self._storage, path)
        return version

    def sweep(self) -> None:
        """Delete what the last report wrote and this one did not."""
        for path in sorted(self._before.keys() - self.written.keys()):
            self._storage.delete(path)
            name = layout.parse(path)
            if name is not None and name.split:
                self._storage.prune(path.rpartition("/")[0])


def _files_of_last_report(storage: Storage) -> dict[str, DataFile | None]:
    try:
        run = read_run_manifest(storage)
    except ShardError:  # damaged: nobody knows what it named
        run = None
    if run is None:
        check_replaceable(storage, layout.RUN_MANIFEST)
        return {}
    if run.files:
        return {path: file for path, file in run.files.items() if _is_replaced(path)}
    # 0.1 did not name the files of its report; the others have our mark.
    chunks = storage.list(layout.GALLERY_DATA_FOLDER)
    return dict.fromkeys([layout.CONTACT_SHEET, *filter(_is_replaced, chunks)])


def _is_replaced(path: str) -> bool:
    name = layout.parse(path)
    kind = name.kind if name is not None else ""
    return kind in layout.REPORT_KINDS and path != layout.RUN_MANIFEST
