"""Ways to damage or forge files of a finished run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pyarrow as pa

from rudalle_lib.dataset import layout
from rudalle_lib.dataset.manifests import read_shard_manifest, write_shard_manifest
from rudalle_lib.schema.records import DataFile, ShardManifest
from rudalle_lib.storage.storage import Storage

Damage = Callable[[Storage], None]
PathOf = str | Callable[[Storage], str]
"""A path, or a function that finds it in the output."""


def manifest_of(storage: Storage, index: int = 0) -> ShardManifest:
    """The manifest of a finished shard."""
    manifest = read_shard_manifest(storage, index)
    assert manifest is not None
    return manifest


def first_image(storage: Storage, index: int = 0) -> str:
    """The first image file of a shard."""
    return storage.list(layout.images_folder(index))[0]


def metadata_of(storage: Storage, index: int = 0) -> str:
    """The metadata file of a shard."""
    return manifest_of(storage, index).metadata.path


def metadata_of_shard_1(storage: Storage) -> str:
    """The metadata file of shard 1."""
    return metadata_of(storage, 1)


def rejects_of(storage: Storage, index: int = 0) -> str:
    """The rejects of a shard."""
    rejects = manifest_of(storage, index).rejects
    assert rejects is not None
    return rejects.path


def archive_of(storage: Storage, index: int = 0) -> str:
    """The archive of a shard."""
    archive = next(iter(manifest_of(storage, index).archives), None)
    assert archive is not None
    return archive.path


def artifact_of(stage: str, index: int = 0) -> Callable[[Storage], str]:
    """Finds the artifact of a stage for a shard."""
    return lambda storage: storage.relative(manifest_of(storage, index).stages[stage].uri)


def image_of_shard_1(storage: Storage) -> str:
    """The first image file of shard 1."""
    return first_image(storage, 1)


def flip(path: PathOf, at: float = 0.5) -> Damage:
    """Flip one bit, at this fraction of the file."""

    def damage(storage: Storage) -> None:
        name = _resolve(path, storage)
        content = bytearray(storage.read_bytes(name))
        content[int(len(content) * at)] ^= 1
        storage.write_bytes(name, bytes(content))

    return damage


def cut(path: PathOf) -> Damage:
    """Keep only the first half of a file."""

    def damage(storage: Storage) -> None:
        name = _resolve(path, storage)
        content = storage.read_bytes(name)
        storage.write_bytes(name, content[: len(content) // 2])

    return damage


def replaced(path: PathOf, by: PathOf) -> Damage:
    """Replace a file by another one."""

    def damage(storage: Storage) -> None:
        content = storage.read_bytes(_resolve(by, storage))
        storage.write_bytes(_resolve(path, storage), content)

    return damage


def deleted(path: PathOf) -> Damage:
    """Delete a file."""
    return lambda storage: storage.delete(_resolve(path, storage))


def forge(storage: Storage, change: Callable[[pa.Table], pa.Table], index: int = 0) -> None:
    """Change the metadata of a shard together with its seal and digest."""
    manifest = manifest_of(storage, index)
    path = manifest.metadata.path
    content = storage.write_table(path, change(storage.read_table(path)))
    write_shard_manifest(storage, replace(manifest, metadata=DataFile.of(path, content)))


def with_column(
    table: pa.Table, name: str, values: Callable[[list[object]], list[object]]
) -> pa.Table:
    """The table with other values in one column."""
    place, field = table.schema.get_field_index(name), table.schema.field(name)
    return table.set_column(
        place, field, pa.array(values(table.column(name).to_pylist()), field.type)
    )


def forged_column(name: str, values: Callable[[list[object]], list[object]]) -> Damage:
    """Change the values of one metadata column of shard 0."""
    return lambda storage: forge(storage, lambda table: with_column(table, name, values))


def exchange_images(storage: Storage) -> None:
    """Swap the first and the last image of shard 0, together with sizes and digests."""

    def swap(values: list[object]) -> list[object]:
        first, *rest, last = values
        return [last, *rest, first]

    def change(table: pa.Table) -> pa.Table:
        assert table.column("prompt_id")[0] != table.column("prompt_id")[-1]
        for name in ("path", "sha256", "bytes"):
            table = with_column(table, name, swap)
        return table

    forge(storage, change)


def _resolve(path: PathOf, storage: Storage) -> str:
    return path if isinstance(path, str) else path(storage)
