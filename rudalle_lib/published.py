"""Published pictures, read back from whatever form they were published in."""

from __future__ import annotations

from collections.abc import Mapping

from rudalle_lib.archives import unpack_table, unpack_tar
from rudalle_lib.errors import StorageError
from rudalle_lib.storage import Storage


class PublishedPictures:
    """Reads encoded pictures by `path` and `image_id` of the metadata.

    A file that holds many is read once for all that are asked for in a row.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._path = ""
        self._pictures: Mapping[str, bytes] = {}

    def read(self, path: str, image_id: str) -> bytes:
        """The file of a picture.

        Raises:
            StorageError: it is not there, or the file that holds it is damaged.
        """
        if not is_archive(path):
            return self._storage.read_bytes(path)
        if path != self._path:
            name, content = self._storage.public_path(path), self._storage.read_bytes(path)
            self._pictures, self._path = unpack(content, name), path
        if image_id not in self._pictures:
            raise StorageError(
                f"{self._storage.public_path(path)} holds no picture {image_id}, which "
                "data/metadata says lies there; see `rudalle-flows verify`."
            )
        return self._pictures[image_id]


def is_archive(path: str) -> bool:
    """Whether a file holds all pictures of a shard."""
    return path.endswith((".tar", ".parquet"))


def unpack(content: bytes, name: str) -> dict[str, bytes]:
    """All pictures of a tar or table, told by its name, by image id. Raises `StorageError`."""
    return unpack_tar(content, name) if name.endswith(".tar") else unpack_table(content, name)
