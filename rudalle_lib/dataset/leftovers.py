"""Deletes files that no manifest names any more: of earlier settings, and of interrupted runs.

Only files that a manifest of ours named, or whose names carry a version, are ever deleted; where
0.1 was interrupted before it wrote a manifest, a sealed metadata table stands for it. Everything
else in the folder belongs to somebody else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from rudalle_lib.dataset import layout
from rudalle_lib.dataset.manifests import delete_shard_manifests, read_shard_manifest
from rudalle_lib.errors import ShardError, StorageError
from rudalle_lib.schema.records import ShardManifest
from rudalle_lib.storage.storage import Storage

SHARD_KINDS = ("stage", "image", "archive", "metadata", "rejects")
"""Kinds of files that belong to one shard (`layout.Name.kind`), its plan and manifest aside."""

SHARED_FOLDERS = (
    layout.STAGES_FOLDER,
    layout.METADATA_FOLDER,
    layout.REJECTS_FOLDER,
    *(folder for folder, _ in layout.ARCHIVES.values()),
)
"""Folders that hold files of all shards."""


def named_files(storage: Storage, index: int, term: int = 0) -> set[str]:
    """All files of a shard that its manifest names, images included.

    Args:
        storage: The output.
        index: The shard.
        term: Of the lease that is held.
    """
    try:
        manifest = read_shard_manifest(storage, index, term)
    except ShardError:  # damaged: nobody knows what it named
        manifest = None
    if manifest is None:
        return _unversioned_files(storage, index)
    images = set() if manifest.archives else _images_of(storage, manifest.metadata.path)
    return files_of(manifest) | stages_of(storage, manifest) | images


def files_of(manifest: ShardManifest) -> set[str]:
    """The files that a manifest names itself: tables and archive, without single images."""
    files = (manifest.metadata, manifest.rejects, *manifest.archives)
    return {file.path for file in files if file is not None}


def stages_of(storage: Storage, manifest: ShardManifest) -> set[str]:
    """The stage artifacts that a manifest names."""
    stages = manifest.stages.items()
    return {storage.relative(artifact.uri) for name, artifact in stages if name != "publish"}


def sweep_shard(
    storage: Storage,
    index: int,
    before: Iterable[str],
    term: int = 0,
    splits: Collection[str] = (),
) -> None:
    """Delete what a shard no longer needs, once its new manifest is written.

    Args:
        storage: The output.
        index: The shard.
        before: The files that its earlier manifest named (`named_files`).
        term: Of the lease that is held. What a later holder writes is never deleted.
        splits: Of the dataset.
    """
    named = named_files(storage, index, term)
    folders = [layout.images_folder(index, split=split) for split in ("", *splits)]
    found = [path for folder in folders for path in storage.list(folder)]
    interrupted = [path for path in found if _may_be_swept(path, term)]
    emptied = set()
    for path in {*before, *interrupted} - named:
        name = layout.parse(path)
        if name is not None and name.kind in SHARD_KINDS and name.number == index:
            storage.delete(path)
            parent = path.rpartition("/")[0]
            if name.kind == "image":
                emptied |= {parent, layout.images_folder(index, split=name.split)}
            elif name.split:
                emptied.add(parent)
    for path in sorted(emptied, reverse=True):
        storage.prune(path)


def sweep_run(
    storage: Storage,
    manifests: Iterable[ShardManifest],
    term: int = 0,
    merged: Collection[str] = (),
) -> None:
    """Delete files of finished shards that no manifest names, and merged files of before.

    Single images are listed only after a takeover: listing millions takes long, and otherwise
    `sweep_shard` has found them.

    Args:
        storage: The output.
        manifests: Of all finished shards.
        term: Of the lease that is held. What a later holder writes is never deleted.
        merged: The merged files of now.
    """
    for path in storage.list(layout.MERGED_FOLDER):
        name = layout.parse(path)
        if name is not None and name.kind == "merged" and path not in merged:
            storage.delete(path)
            storage.prune(path.rpartition("/")[0])
    versions: dict[int, str] = {}
    named: set[str] = set()
    for manifest in manifests:
        metadata = layout.parse(manifest.metadata.path)
        versions[manifest.index] = "" if metadata is None else metadata.version
        named |= files_of(manifest) | stages_of(storage, manifest)
        delete_shard_manifests(storage, manifest.index, min(manifest.term, term + 1) - 1)
    for folder in (*SHARED_FOLDERS, *([layout.IMAGES_FOLDER] if term else [])):
        for path in storage.list(folder):
            name = layout.parse(path)
            if name is None or name.number not in versions or not _may_be_swept(path, term):
                continue
            if path not in named and not (
                name.kind == "image" and name.version == versions[name.number]
            ):
                storage.delete(path)
                storage.prune(path.rpartition("/")[0])


def _may_be_swept(path: str, term: int) -> bool:
    name = layout.parse(path)
    return name is not None and name.version != layout.UNVERSIONED and name.term <= term


def _unversioned_files(storage: Storage, index: int) -> set[str]:
    """What 0.1 published for a shard; only tables with an intact seal are known to be ours."""
    metadata = layout.metadata_path(index)
    images = _images_of(storage, metadata)
    return images | {metadata, layout.rejects_path(index)} if images else set()


def _images_of(storage: Storage, metadata: str) -> set[str]:
    """The files that a metadata table names: images, or the archive that holds them."""
    try:
        table = storage.read_table(metadata, ["path"])
    except StorageError:  # gone or damaged; images of now are found by their version
        return set()
    return set(table.column("path").to_pylist())
