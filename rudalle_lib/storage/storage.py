"""Files below one folder or fsspec URL, written atomically.

A file appears whole or not at all. Locally it is written to a temporary name in `.tmp/`, which is
never listed, and then renamed. Elsewhere it is a single put or a completed multipart upload.

A path without a scheme is a local path. See `filesystems` for the options of other URLs.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from rudalle_lib.errors import StorageError
from rudalle_lib.storage import bounds, local_files, seals
from rudalle_lib.storage.errors import is_conflict, public_url, translate_errors
from rudalle_lib.storage.file_kinds import CONTENT_TYPES
from rudalle_lib.storage.filesystems import connect, is_local, list_folder, run_concurrently, url_of
from rudalle_lib.storage.guards import check_guard, replace_version, version_of
from rudalle_lib.storage.sealed_parquet import from_parquet, open_parquet, to_parquet


class Storage:
    """The files below a folder or fsspec URL, by their paths relative to it.

    Paths use `/` and must not leave the root. Every method raises `StorageError` if the storage
    does not answer or denies the request.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        """Connect to a folder or URL, which need not exist yet.

        Args:
            url: a local path or any fsspec URL; the root of all paths.
            options: arguments of the fsspec file system; they override the environment's.
        """
        self._file_system, self._root = connect(url, options, bounds.OUTPUTS)
        self._local = is_local(self._file_system)
        self._on_s3 = "s3" in self._file_system.protocol
        # Otherwise s3fs first requests the size of each file, to read large ones in ranges.
        self._read_options = {"max_concurrency": 1} if self._on_s3 else {}

    # --- names -------------------------------------------------------------------------------

    def url(self, path: str = "") -> str:
        """The full URL of a path, or its absolute local path, without a trailing slash."""
        full = self._full(path)
        return full if self._local else url_of(self._file_system, full)

    def public_path(self, path: str = "") -> str:
        """Like `url`, but without credentials and query string, for logs and manifests."""
        return public_url(self.url(path))

    def relative(self, uri: str) -> str:
        """The path of a file from its full URL; the inverse of `url`."""
        prefix = self.url() + "/"
        if not uri.startswith(prefix):
            raise StorageError(f"{public_url(uri)} is not in {self.public_path()}.")
        return uri.removeprefix(prefix)

    def link(self, path: str, seconds: int) -> str:
        """A URL that a browser can open.

        Args:
            path: the file.
            seconds: how long a signed URL is valid; `file:` URLs of local files do not expire.

        Raises:
            StorageError: this storage cannot sign URLs.
        """
        if self._local:
            return Path(self._full(path)).as_uri()
        with translate_errors("sign a URL of", self.url(path)):
            try:
                return str(self._file_system.sign(self._full(path), expiration=seconds))
            except NotImplementedError:
                raise StorageError(
                    f"{self.public_path()} cannot sign URLs; copy the folder to a local disk, "
                    "and open gallery/index.html there."
                ) from None

    # --- bytes -------------------------------------------------------------------------------

    def read_bytes(self, path: str) -> bytes:
        """The content of a file, which must exist, in one request."""
        with translate_errors("read", self.url(path)):
            return self._get(path)

    def read_bytes_if_any(self, path: str) -> bytes | None:
        """The content of a file, or None if there is no such file."""
        with translate_errors("read", self.url(path)):
            try:
                return self._get(path)
            except (FileNotFoundError, NotADirectoryError) as error:
                if "NoSuchBucket" in str(getattr(error.__cause__, "response", "")):
                    raise
                return None

    def _get(self, path: str) -> bytes:
        return bytes(self._file_system.cat_file(self._full(path), **self._read_options))

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        """The contents of many small files, in order, read concurrently."""

        async def get(path: str) -> bytes:
            with translate_errors("read", self.url(path)):
                return bytes(
                    await self._file_system._cat_file(self._full(path), **self._read_options)
                )

        return run_concurrently(self._file_system, self.read_bytes, get, paths)

    def version(self, path: str) -> str | None:
        """What identifies the content of a file on S3; "" if there is no file, None elsewhere."""
        if not self._on_s3:
            return None
        with translate_errors("read", self.url(path)):
            return version_of(self._file_system, self._full(path))

    def write_bytes(self, path: str, content: bytes, replacing: str | None = None) -> None:
        """Write or replace a file atomically: readers see the old content or the new.

        Only the `version` that is `replacing` is replaced, unless it is None.
        """
        with translate_errors("write", self.url(path)):
            self._put(path, content, replacing)

    def create_many(self, files: Mapping[str, bytes]) -> None:
        """Write many small files concurrently, none of which may exist with another content.

        If one of them fails, any of the others may have been written or not.

        Args:
            files: content by path.

        Raises:
            StorageError: a file exists and has another content.
        """

        def create(path: str) -> None:
            if not self.create(path, files[path]):
                self._check_same(path, self.read_bytes(path), files[path])

        async def put(path: str) -> None:
            full = self._full(path)
            with translate_errors("create", self.url(path)):
                try:
                    headers = {**self._headers(path), "mode": "create"}
                    await self._file_system._pipe_file(full, files[path], **headers)
                except OSError as error:
                    if not (isinstance(error, FileExistsError) or is_conflict(error)):
                        raise
                    found = await self._file_system._cat_file(full, **self._read_options)
                    self._check_same(path, bytes(found), files[path])

        check_guard(self.url())
        run_concurrently(self._file_system, create, put, files)

    def _check_same(self, path: str, found: bytes, expected: bytes) -> None:
        """An equal file is our own: the answer to a first, successful request was lost."""
        if found != expected:
            raise StorageError(
                f"{self.public_path(path)} was written by another run in the meantime; run again."
            )

    def commit(self, path: str, content: bytes, replacing: str | None = None) -> None:
        """As `write_bytes`, for a file that names others; all of them survive a power cut then."""
        with translate_errors("write", self.url(path)):
            if self._local:
                local_files.sync(self._root)
                with local_files.replacing(self._root, Path(self._full(path))) as stream:
                    stream.write(content)
                local_files.sync(self._root)
            else:
                self._put(path, content, replacing)

    def sync(self) -> None:
        """Make everything that was written to a local disk survive a power cut."""
        if self._local:
            with translate_errors("write to", self.url()):
                local_files.sync(self._root)

    @contextmanager
    def writing(self, path: str, replacing: str | None = None) -> Iterator[BinaryIO]:
        """Open a stream for writing a file, which appears when the block ends.

        If the block raises, the file stays as it was. A local file is written to disk as it grows;
        for any other storage the content is kept in memory until the end.
        """
        with translate_errors("write", self.url(path)):
            if self._local:
                with local_files.replacing(self._root, Path(self._full(path))) as stream:
                    yield stream
            else:
                content = io.BytesIO()
                yield content
                self._put(path, content.getvalue(), replacing)

    def create(self, path: str, content: bytes) -> bool:
        """Write a file unless it exists.

        Of several concurrent writers one succeeds: through a hard link to a finished file locally,
        `If-None-Match: *` on S3, and elsewhere fsspec's `create` mode, as far as it is atomic.

        Returns:
            Whether this call wrote the file. False may also mean that it did, but the response was
            lost and the request repeated.
        """
        with translate_errors("create", self.url(path)):
            if self._local:
                return local_files.create(self._root, Path(self._full(path)), content)
            check_guard(self.url())
            try:
                self._file_system.pipe_file(self._full(path), content, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if is_conflict(error):
                    return False
                raise
            return True

    def _put(self, path: str, content: bytes, replacing: str | None = None) -> None:
        if self._local:
            with local_files.replacing(self._root, Path(self._full(path))) as stream:
                stream.write(content)
            return
        check_guard(self.url())
        full, headers = self._full(path), self._headers(path)
        if replacing is None:
            self._file_system.pipe_file(full, content, **headers)
        elif not replace_version(self._file_system, full, replacing, content, headers):
            self._check_same(path, self._get(path), content)

    def _headers(self, path: str) -> dict[str, str]:
        kind = CONTENT_TYPES.get(path.rpartition(".")[2]) if self._on_s3 else None
        return {"ContentType": kind} if kind else {}

    # --- Parquet -----------------------------------------------------------------------------

    def write_table(
        self, path: str, table: pa.Table, metadata: Mapping[str, str] | None = None
    ) -> bytes:
        """Write a table as sealed Parquet.

        Args:
            path: the file.
            table: the table.
            metadata: is added to the schema metadata.

        Returns:
            The content of the file.
        """
        with translate_errors("write", self.url(path)):
            content = to_parquet(table, metadata)
        self.write_bytes(path, content)
        return content

    def read_table(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a sealed Parquet file.

        Args:
            path: the file.
            columns: names of the columns to read; None reads all.

        Raises:
            DamagedError: a byte of the file has changed since it was written.
        """
        content = self.read_bytes(path)
        with translate_errors("read", self.url(path)):
            return from_parquet(content, self.public_path(path), columns)

    def check_table(self, path: str) -> bool:
        """Check a Parquet file without decoding it.

        Returns:
            Whether there is such a file.

        Raises:
            DamagedError: a byte of it has changed since it was written.
        """
        content = self.read_bytes_if_any(path)
        if content is not None:
            open_parquet(content, self.public_path(path))
        return content is not None

    def read_metadata(self, path: str) -> dict[str, str] | None:
        """The schema metadata of a Parquet file; reads only its footer.

        Returns:
            The metadata without the seal, or None if there is no such file or its footer cannot be
            read, so that the caller writes the file again.
        """
        with translate_errors("read", self.url(path)):
            try:
                with self._file_system.open(self._full(path), "rb") as stream:
                    metadata = pq.read_schema(stream).metadata or {}
            except (FileNotFoundError, pa.ArrowException, EOFError):
                return None
            except OSError as error:
                if error.errno is not None:
                    raise
                return None  # raised by Arrow, not by the file system
        items = ((key.decode(), value.decode()) for key, value in metadata.items())
        return {key: value for key, value in items if key not in ("ARROW:schema", seals.KEY)}

    # --- folders -----------------------------------------------------------------------------

    def entries(self, folder: str = "") -> list[str]:
        """The sorted names of the files and folders directly in a folder, or the root."""
        with translate_errors("list", self.url(folder)):
            full = self._full(folder)
            found = list_folder(self._file_system, full)
        names = {name.removeprefix(full).strip("/").partition("/")[0] for name in found}
        return sorted(names - {"", local_files.TEMPORARY_FOLDER})

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder of this name."""
        with translate_errors("look for", self.url(path)):
            return bool(self._file_system.exists(self._full(path)))

    def list(self, folder: str = "") -> list[str]:
        """The sorted paths of all files below a folder; empty if there is no such folder."""
        with translate_errors("list", self.url(folder)):
            full = self._full(folder)
            files = local_files.walk(full) if self._local else self._file_system.find(full)
            found = [*files]
        prefix = self._root + "/"  # some servers also list the root itself, as an object
        paths = (name.removeprefix(prefix) for name in found if name.startswith(prefix))
        return sorted(
            path
            for path in paths
            if path.partition("/")[0] not in ("", local_files.TEMPORARY_FOLDER)
            and not path.endswith(("/", f"/{local_files.FOLDER_PROBE}"))
        )

    def size(self, path: str) -> int:
        """The size of a file in bytes."""
        with translate_errors("read", self.url(path)):
            return int(self._file_system.size(self._full(path)))

    def modified(self, path: str) -> float | None:
        """When a file was written, in seconds since 1970 by the storage's own clock.

        Returns:
            None if the storage does not tell.
        """
        with translate_errors("read", self.url(path)):
            try:
                return float(self._file_system.modified(self._full(path)).timestamp())
            except (AttributeError, NotImplementedError):
                return None

    def free_bytes(self) -> int | None:
        """Free space of a local disk; None elsewhere. Some mounts report 0 for "unknown"."""
        return shutil.disk_usage(self._root).free if self._local else None

    def delete(self, path: str) -> None:
        """Delete a file if it exists."""
        with translate_errors("delete", self.url(path)):
            check_guard(self.url())
            try:
                self._file_system.rm_file(self._full(path))
            except FileNotFoundError:
                return

    def prune(self, folder: str) -> None:
        """Remove a local folder if it is empty; other storages have no folders."""
        if self._local:
            with suppress(OSError):
                Path(self._full(folder)).rmdir()

    def sweep_temporary(self, older_than_seconds: float) -> None:
        """Delete temporary files that killed writers left in a local folder.

        Does nothing if the storage is not local.

        Args:
            older_than_seconds: delete files that have not been modified for longer than this, by
                the clock of the file system.
        """
        if self._local:
            with translate_errors("clean up", self.url(local_files.TEMPORARY_FOLDER)):
                local_files.sweep_temporary(self._root, older_than_seconds)

    def _full(self, path: str) -> str:
        parts = PurePosixPath(path).parts
        if path.startswith("/") or ".." in parts:
            raise StorageError(f"Paths must stay below {public_url(self._root)}, found {path!r}.")
        inner = [part for part in parts if part != "."]
        if self._local:
            local_files.reject_links(self._root, inner)
        return "/".join([self._root, *inner])
