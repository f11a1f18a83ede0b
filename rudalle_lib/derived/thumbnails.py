"""Thumbnails for the gallery, `gallery/thumbnails/<shard>/<version>/<image_id>.webp`.

They are made once per image, when the report is written, and kept as long as their shard stays as
it is: the version is that of its fingerprint. So a run that draws nothing makes none.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice

from PIL import Image

from rudalle_lib.dataset import layout
from rudalle_lib.errors import ImageError
from rudalle_lib.schema.records import ShardManifest
from rudalle_lib.storage.storage import Storage

SIDE = 512
"""Longer side in pixels: twice the usual width of a tile, for screens with two pixels per pixel."""

QUALITY = 85

THREADS = 8
"""Most threads that make thumbnails; Pillow releases Python's lock for most of it."""

PER_BATCH = 64
"""Thumbnails that are written together."""


def make_thumbnail(image: bytes, side: int = SIDE, quality: int = QUALITY) -> bytes:
    """Encode an image as WebP that is at most `side` pixels wide and high; smaller ones stay so.

    Args:
        image: An image file.
        side: Longer side in pixels.
        quality: Of WebP, 1 to 100.

    Raises:
        ImageError: The file is damaged.
    """
    from rudalle_lib.images.codecs import decode_image, to_pil  # imports torch

    small = to_pil(decode_image(image, keep_alpha=True))
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=quality)
    return buffer.getvalue()


class Thumbnails:
    """Makes the thumbnails of an output that do not exist yet."""

    def __init__(self, storage: Storage) -> None:
        """Find those that exist.

        Raises:
            StorageError: The storage cannot be listed.
        """
        self._storage = storage
        self._existing = frozenset(storage.list(layout.THUMBNAILS_FOLDER))
        self._wanted: set[str] = set()

    def add(
        self, manifest: ShardManifest, names: Iterable[str], images: Iterable[bytes | None]
    ) -> Mapping[str, str]:
        """Make the missing thumbnails of a shard.

        Args:
            manifest: Of the shard.
            names: Ids of images.
            images: Their files in the same order, read one by one and only if a thumbnail is
                missing; None for an image that does not exist any more.

        Returns:
            Paths by image id; images that do not exist or are damaged have none.

        Raises:
            StorageError: A thumbnail cannot be written.
        """
        version = layout.version_of(manifest.fingerprint)
        paths = {name: layout.thumbnail_path(manifest.index, version, name) for name in names}
        found = {name: path for name, path in paths.items() if path in self._existing}
        if len(found) < len(paths):
            found |= self._make(paths, images)
        self._wanted.update(found.values())
        return found

    def sweep(self) -> None:
        """Delete thumbnails of images that are no longer shown."""
        for path in sorted(self._existing - self._wanted):
            name = layout.parse(path)
            if name is not None and name.kind == "thumbnail":
                self._storage.delete(path)
                self._storage.prune(path.rpartition("/")[0])
                self._storage.prune(path.rsplit("/", 2)[0])

    def _make(self, paths: Mapping[str, str], images: Iterable[bytes | None]) -> dict[str, str]:
        made: dict[str, str] = {}
        rows = zip(paths.items(), images, strict=True)
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
            while batch := list(islice(rows, PER_BATCH)):
                names, files = zip(*batch, strict=True)
                contents = pool.map(_thumbnail_if_any, files)
                new = dict(zip(names, contents, strict=True))
                found = {name: path for (name, path), content in new.items() if content}
                made |= found
                self._storage.create_many({
                    path: content
                    for (_, path), content in new.items()
                    if content and path not in self._existing
                })  # fmt: skip
        return made


def _thumbnail_if_any(image: bytes | None) -> bytes | None:
    if image is not None:
        with suppress(ImageError):
            return make_thumbnail(image)
    return None


def sweep_thumbnails(storage: Storage) -> None:
    """Delete all thumbnails, where there is no gallery any more."""
    Thumbnails(storage).sweep()
