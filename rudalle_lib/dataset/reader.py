"""Reads published images, whether they are files of their own or packed into archives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rudalle_lib.dataset.archives import unpack_table, unpack_tar
from rudalle_lib.errors import StorageError
from rudalle_lib.storage.storage import Storage


class PublishedImages:
    """Reads encoded images by `path` and `image_id` of the metadata.

    The last archive is cached, so images should be read in the order of the metadata.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._path = ""
        self._images: Mapping[str, bytes] = {}

    def read(self, path: str, image_id: str) -> bytes:
        """The encoded image.

        Args:
            path: Image file, or the archive that holds the image.
            image_id: Id of the image.

        Raises:
            StorageError: The image is missing, or its archive is damaged.
        """
        if not is_archive(path):
            return self._storage.read_bytes(path)
        if path != self._path:
            name, content = self._storage.public_path(path), self._storage.read_bytes(path)
            self._images, self._path = unpack(content, name), path
        if image_id not in self._images:
            raise StorageError(
                f"{self._storage.public_path(path)} holds no image {image_id}, although "
                "data/metadata says so; see `rudalle-flows verify`."
            )
        return self._images[image_id]

    def read_many(self, paths: Sequence[str], image_ids: Sequence[str]) -> list[bytes]:
        """The encoded images of several rows of the metadata, image files concurrently.

        Raises:
            StorageError: An image is missing, or its archive is damaged.
        """
        if any(map(is_archive, paths)):
            return [self.read(*row) for row in zip(paths, image_ids, strict=True)]
        return self._storage.read_many(paths)


def is_archive(path: str) -> bool:
    """Whether a file holds all images of a shard."""
    return path.endswith((".tar", ".parquet"))


def unpack(content: bytes, name: str) -> dict[str, bytes]:
    """Unpack the images of a tar or Parquet table.

    Args:
        content: The archive.
        name: Its name, which tells the format.

    Returns:
        Encoded images by image id.

    Raises:
        StorageError: The archive is damaged.
    """
    return unpack_tar(content, name) if name.endswith(".tar") else unpack_table(content, name)
