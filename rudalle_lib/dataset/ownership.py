"""Whose folder an output is, and whose its files are: ours, or a stranger's."""

from __future__ import annotations

import os

from rudalle_lib.dataset import layout
from rudalle_lib.dataset.lease_files import read_lease
from rudalle_lib.dataset.manifests import read_run_manifest
from rudalle_lib.errors import ShardError, StorageError
from rudalle_lib.storage.storage import Storage

IGNORED = (
    "lost+found",
    "System Volume Information",
    "$RECYCLE.BIN",
    "@eaDir",
    "#recycle",
    "desktop.ini",
    "Thumbs.db",
)
"""What systems and storage appliances make in every folder; hidden files are ignored, too."""

MAX_NAMED = 3
"""Entries that the error names."""


MARKS = {
    layout.RUN_MANIFEST: b'"config_digest"',
    layout.LINEAGE: b'"changes"',
    layout.PRECISION_FILE: b'"runtime"',
    layout.CARD: b"rudalle-flows",
    layout.CROISSANT: b"rudalle-flows",
    layout.METRICS: b"rudalle_flows_",
    layout.GALLERY_PAGE: b"rudalle-flows",
    layout.CONTACT_SHEET: b"rudalle-flows",
}
"""What each file outside of our folders contains, by path."""

FOLDERS = (
    layout.PLAN_FOLDER,
    layout.STAGES_FOLDER,
    layout.IMAGES_FOLDER,
    layout.MERGED_FOLDER,
    layout.METADATA_FOLDER,
    *(folder for folder, _ in layout.ARCHIVES.values()),
    layout.REJECTS_FOLDER,
    layout.SHARDS_FOLDER,
    layout.LEASE_FOLDER,
    layout.RANGE_LEASES_FOLDER,
    layout.GALLERY_DATA_FOLDER,
    layout.THUMBNAILS_FOLDER,
)
"""Folders that a run writes to."""

IMAGE_TABLE_MARK = b"rudalle-flows"
"""What a table beside image files contains: a key of its metadata."""

CHUNK_MARK = b"galleryRows("
"""What each file of the gallery's data contains."""


def check_ours(storage: Storage) -> None:
    """Check that a run may write to a folder: it is empty, or holds a run of ours.

    Raises:
        StorageError: something else is there, a folder in it is a link, or it cannot be read.
    """
    found = [n for n in storage.entries() if not n.startswith(".") and n not in IGNORED]
    if not found or _are_empty_folders(storage, set(found)):
        return
    if _holds_a_run(storage, set(found)):
        for folder in FOLDERS:
            storage.url(folder)  # raises if it is a link
        for path in MARKS:
            _check_no_folder(storage, path)
        if layout.RUN_MANIFEST not in found or not _is_finished(storage):
            for path in MARKS:
                check_replaceable(storage, path)
        return
    names = ", ".join(found[:MAX_NAMED]) + (" ..." if len(found) > MAX_NAMED else "")
    raise StorageError(
        f"{storage.public_path()} is not empty and is not the output of a run: it holds {names}. "
        "Choose an empty or new folder, so that nothing in it is overwritten."
    )


def check_replaceable(storage: Storage, path: str) -> None:
    """Check that a file of a report, which no run has named yet, may be replaced.

    An interrupted report may have left it; then it contains our mark.

    Raises:
        StorageError: it is somebody else's.
    """
    content = storage.read_bytes_if_any(path)
    mark = IMAGE_TABLE_MARK if path.endswith(layout.IMAGE_TABLE) else MARKS.get(path, CHUNK_MARK)
    if content and content.strip(b"\0") and mark not in content:
        raise StorageError(
            f"{storage.public_path(path)} was not written by a run, and a run would replace it; "
            "move it to another folder, then run again."
        )


def _check_no_folder(storage: Storage, path: str) -> None:
    """Check that there is no folder where a file would be written; only disks have folders."""
    if os.path.isdir(storage.url(path)):
        raise StorageError(
            f"{storage.public_path(path)} is a folder, and a run would write a file of this name; "
            "remove or rename it, then run again."
        )


def _are_empty_folders(storage: Storage, entries: set[str]) -> bool:
    """Whether there are only folders of ours without files, as some tools make them on S3."""
    ours = {folder.partition("/")[0] for folder in FOLDERS}
    if not entries <= ours or storage.list():
        return False
    named = (f"{folder}/{name}" for folder in FOLDERS for name in storage.entries(folder))
    return not any(map(layout.parse, named))  # a folder where a file of ours would be


def _holds_a_run(storage: Storage, entries: set[str]) -> bool:
    if layout.LEASE_FOLDER in entries and read_lease(storage) is not None:
        return True
    if layout.PLAN_FOLDER in entries:
        for path in storage.list(layout.PLAN_FOLDER):
            if layout.index_of(path, "plan") is not None:
                return True
    return layout.RUN_MANIFEST in entries and _is_finished(storage)


def _is_finished(storage: Storage) -> bool:
    try:
        return read_run_manifest(storage) is not None
    except ShardError:  # damaged, or a file of that name that is not ours
        return False
