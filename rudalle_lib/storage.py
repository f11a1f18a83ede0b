"""Files below one folder or fsspec URL.

Objects appear whole or not at all: locally by writing to a temporary name (in `.tmp/`, which is
never listed) and renaming, elsewhere by a single put or a completed multipart upload.

A path without a scheme is a local path; for the options of others see `file_systems`.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from rudalle_lib import layout, seals
from rudalle_lib.errors import StorageError
from rudalle_lib.file_systems import connect, is_local, some_at_once
from rudalle_lib.sealed_tables import from_parquet, to_parquet
from rudalle_lib.storage_errors import clear_errors, is_conflict, public_url

#: Where local files are written before they are renamed into place.
TEMPORARY_FOLDER = ".tmp"

#: Free space below which no run is begun on a local disk.
MIN_FREE_BYTES = 64 * 2**20


class Storage:
    """The files below `url`, a folder or any fsspec URL, by paths relative to it.

    `options` go to the fsspec file system, over those that the environment gives. Paths are
    relative, with `/`, and may not leave the root. Every method raises `StorageError`, in one
    sentence, where the storage refuses.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self._file_system, self._root = connect(url, options)
        self._local = is_local(self._file_system)
        self._on_s3 = "s3" in self._file_system.protocol
        # Else s3fs asks for the size of each file first, to get large ones in parallel ranges.
        self._whole = {"max_concurrency": 1} if self._on_s3 else {}

    # --- names -------------------------------------------------------------------------------

    def url(self, path: str = "") -> str:
        """The whole URL of a path (for a local folder its absolute path), without a final slash."""
        full = self._full(path)
        return full if self._local else str(self._file_system.unstrip_protocol(full))

    def public_path(self, path: str = "") -> str:
        """As `url`, fit for logs, manifests and people: without credentials and query strings."""
        return public_url(self.url(path))

    def relative(self, uri: str) -> str:
        """The path of something below the root, from its whole URL; the inverse of `url`."""
        prefix = self.url() + "/"
        if not uri.startswith(prefix):
            raise StorageError(f"{public_url(uri)} does not lie in {self.public_path()}.")
        return uri.removeprefix(prefix)

    def link(self, path: str, seconds: int) -> str:
        """A URL at which a browser finds a file: signed, for some seconds, or of a local file.

        Raises `StorageError` where this storage cannot sign URLs.
        """
        if self._local:
            return Path(self._full(path)).as_uri()
        with clear_errors("sign a URL of", self.url(path)):
            try:
                return str(self._file_system.sign(self._full(path), expiration=seconds))
            except NotImplementedError:
                raise StorageError(
                    f"{self.public_path()} gives no signed URLs; copy the folder to a local disk, "
                    "and open gallery/index.html there."
                ) from None

    # --- bytes -------------------------------------------------------------------------------

    def read_bytes(self, path: str) -> bytes:
        """The content of a file; it must exist. One request, as all reading of whole files."""
        with clear_errors("read", self.url(path)):
            return self._get(path)

    def read_bytes_if_any(self, path: str) -> bytes | None:
        """The content of a file, None where there is no such file."""
        with clear_errors("read", self.url(path)):
            try:
                return self._get(path)
            except (FileNotFoundError, NotADirectoryError) as error:
                if "NoSuchBucket" in str(getattr(error.__cause__, "response", "")):
                    raise
                return None

    def _get(self, path: str) -> bytes:
        return bytes(self._file_system.cat_file(self._full(path), **self._whole))

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        """The contents of many small files, in order; as `read_bytes`, but some at once."""

        async def get(path: str) -> bytes:
            with clear_errors("read", self.url(path)):
                return bytes(await self._file_system._cat_file(self._full(path), **self._whole))

        return some_at_once(self._file_system, self.read_bytes, get, paths)

    def write_bytes(self, path: str, content: bytes) -> None:
        """Write or replace a whole file; a reader sees the old or the new one, never a part."""
        with clear_errors("write", self.url(path)):
            self._put(path, content)

    def write_many(self, files: Mapping[str, bytes]) -> None:
        """Write or replace many small files, by path; as `write_bytes`, but some at once.

        Where it raises for one of them, any of the others may be there or not.
        """

        async def put(path: str) -> None:
            with clear_errors("write", self.url(path)):
                told = self._headers(path)
                await self._file_system._pipe_file(self._full(path), files[path], **told)

        some_at_once(
            self._file_system, lambda path: self.write_bytes(path, files[path]), put, files
        )

    @contextmanager
    def writing(self, path: str) -> Iterator[BinaryIO]:
        """A stream for the bytes of a whole file, which appears when the block ends.

        Nothing appears of a block that raises. On a local disk they lie there meanwhile, elsewhere
        in memory.
        """
        with clear_errors("write", self.url(path)):
            if self._local:
                with self._replacing(Path(self._full(path))) as stream:
                    yield stream
            else:
                content = io.BytesIO()
                yield content
                self._put(path, content.getvalue())

    def create(self, path: str, content: bytes) -> bool:
        """Write a whole file only if there is none of this name; whether it was written.

        Of several that try at once, one succeeds: by a hard link to a finished file locally, by
        `If-None-Match: *` on S3, elsewhere as well as the file system's `create` mode knows how.
        False may also mean that the answer to a first, successful request was lost on its way.
        """
        with clear_errors("create", self.url(path)):
            if self._local:
                return self._create_local(Path(self._full(path)), content)
            try:
                self._file_system.pipe_file(self._full(path), content, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if is_conflict(error):
                    return False
                raise
            return True

    def _create_local(self, target: Path, content: bytes) -> bool:
        temporary = Path(self._root, TEMPORARY_FOLDER, uuid.uuid4().hex)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _open_new(temporary) as file:
                file.write(content)
            try:
                os.link(temporary, target)
            except PermissionError:  # a file system without hard links
                with target.open("xb") as file:
                    file.write(content)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _put(self, path: str, content: bytes) -> None:
        if self._local:
            with self._replacing(Path(self._full(path))) as stream:
                stream.write(content)
        else:
            self._file_system.pipe_file(self._full(path), content, **self._headers(path))

    def _headers(self, path: str) -> dict[str, str]:
        kind = layout.CONTENT_TYPES.get(path.rpartition(".")[2]) if self._on_s3 else None
        return {"ContentType": kind} if kind else {}

    @contextmanager
    def _replacing(self, target: Path) -> Iterator[BinaryIO]:
        """A new local file under a temporary name, which gets its own when the block ends."""
        temporary = Path(self._root, TEMPORARY_FOLDER, uuid.uuid4().hex)
        try:
            with _open_new(temporary) as stream:
                yield stream
            try:
                os.replace(temporary, target)
            except FileNotFoundError:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    # --- Parquet -----------------------------------------------------------------------------

    def write_table(
        self, path: str, table: pa.Table, metadata: Mapping[str, str] | None = None
    ) -> bytes:
        """Write a table as sealed Parquet, `metadata` in its schema; returns the bytes written."""
        with clear_errors("write", self.url(path)):
            content = to_parquet(table, metadata)
        self.write_bytes(path, content)
        return content

    def read_table(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a Parquet file, or some columns of it.

        Raises `DamagedError` where any byte of it has changed since it was written.
        """
        content = self.read_bytes(path)
        with clear_errors("read", self.url(path)):
            return from_parquet(content, self.public_path(path), columns)

    def read_metadata(self, path: str) -> dict[str, str] | None:
        """The schema metadata of a Parquet file, read from its end; None where there is none.

        A file that is not whole Parquet counts as absent: whoever asks has to make it anew.
        """
        with clear_errors("read", self.url(path)):
            try:
                with self._file_system.open(self._full(path), "rb") as stream:
                    metadata = pq.read_schema(stream).metadata or {}
            except (FileNotFoundError, pa.ArrowException, EOFError):
                return None
            except OSError as error:
                if error.errno is not None:
                    raise
                return None  # Arrow's own complaint about what it read
        items = ((key.decode(), value.decode()) for key, value in metadata.items())
        return {key: value for key, value in items if key not in ("ARROW:schema", seals.KEY)}

    # --- folders -----------------------------------------------------------------------------

    def exists(self, path: str) -> bool:
        """Whether there is a file (or folder) of this name."""
        with clear_errors("look for", self.url(path)):
            return bool(self._file_system.exists(self._full(path)))

    def list(self, folder: str = "") -> list[str]:
        """The paths of all files below a folder, sorted; empty where there is no such folder."""
        with clear_errors("list", self.url(folder)):
            full = self._full(folder)
            found = _walk(full) if self._local else self._file_system.find(full)
        prefix = self._root + "/"  # the root itself is found where a server keeps it as an object
        paths = (name.removeprefix(prefix) for name in found if name.startswith(prefix))
        return sorted(path for path in paths if path.partition("/")[0] != TEMPORARY_FOLDER)

    def size(self, path: str) -> int:
        """The size of a file in bytes."""
        with clear_errors("read", self.url(path)):
            return int(self._file_system.size(self._full(path)))

    def delete(self, path: str) -> None:
        """Delete a file; nothing happens where there is none."""
        with clear_errors("delete", self.url(path)):
            try:
                self._file_system.rm_file(self._full(path))
            except FileNotFoundError:
                return

    def check_writable(self) -> None:
        """Write, read back, list and delete a small file, before any work is done for nothing.

        Raises `StorageError`: no bucket, no answer, wrong credentials, no permission, a file where
        a folder should be ...
        """
        probe = f"{TEMPORARY_FOLDER}/probe-{uuid.uuid4().hex}"
        with clear_errors("write to", self.url()):
            self._put(probe, b"rudalle-flows")
            if self._local and shutil.disk_usage(self._root).free < MIN_FREE_BYTES:
                self.delete(probe)
                raise OSError(errno.ENOSPC, "less than 64 MiB are free")
            if self._get(probe) != b"rudalle-flows":
                raise StorageError(
                    f"{self.public_path()} gives back something else than was written; is that an "
                    "object store? Check the URL and AWS_ENDPOINT_URL."
                )
        self.list("shards")
        self.delete(probe)

    def delete_temporary(self) -> None:
        """Delete what killed writers left behind; only for who is sure to be alone."""
        if self._local:
            shutil.rmtree(Path(self._root, TEMPORARY_FOLDER), ignore_errors=True)

    def _full(self, path: str) -> str:
        parts = PurePosixPath(path).parts
        if path.startswith("/") or ".." in parts:
            raise StorageError(f"Paths must stay below {public_url(self._root)}, found {path!r}.")
        return "/".join([self._root, *(part for part in parts if part != ".")])


def _open_new(path: Path) -> BinaryIO:
    try:
        return path.open("xb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")


def _walk(folder: str) -> Iterator[str]:
    for parent, _, names in os.walk(folder, onerror=_raise_unless_missing):
        for name in names:
            yield f"{parent}/{name}"


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
