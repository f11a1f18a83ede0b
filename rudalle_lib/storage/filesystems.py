"""Connect to any path or URL, read from it, and run many requests concurrently.

Every path or URL passes `urls.check_url` first. This is the only module that imports fsspec.

S3 (`s3://bucket/prefix`, through s3fs) is configured by the standard environment variables
AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_REGION.
Without them, botocore's own configuration applies. Google Cloud Storage (`gs://`, through gcsfs)
and Azure (`az://` and `abfs://`, through adlfs) are configured by the variables of those packages.
All other options come from fsspec's configuration, for example FSSPEC_S3='{"config_kwargs": ...}'.
"""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.local import LocalFileSystem

from rudalle_lib.errors import StorageError
from rudalle_lib.storage import bounds, hosts, http_files
from rudalle_lib.storage.errors import public_url, translate_errors
from rudalle_lib.storage.reading import (
    OWN,
    READ_BUFFER,
    TABLE,
    Reading,
    SilentServers,
    TimedFile,
    call_within,
    open_regular,
)
from rudalle_lib.storage.urls import (
    STORAGE_SCHEMES,
    WEB,
    Url,
    check_url,
    is_local_url,
    local_path,
    scheme_of,
)

Item = TypeVar("Item")
Result = TypeVar("Result")

S3_PROTOCOLS = ("s3", "s3a")

RETRIES = {"mode": "standard", "total_max_attempts": 5}
"""Retries by botocore, with jittered exponential backoff of at most 20 s.

The standard mode also stops retrying early if nearly every request of the process fails.
"""

CLIENT: Mapping[str, Any] = {
    "connect_timeout": 10,
    "read_timeout": 60,
    "signature_version": "s3v4",  # the older one, botocore's choice for links, is often refused
    # Some servers send the checksum of the whole object with a part of it.
    "response_checksum_validation": "when_required",
}
"""Configuration of the S3 client."""

NO_LISTINGS_CACHE: Mapping[str, Any] = {"use_listings_cache": False}
"""Other workers write to the same folders."""

MAX_CONCURRENT = 16
"""Requests in flight; an object store takes about ten milliseconds to answer one."""

READ_AHEAD = 8 * 2**20
"""Bytes that are read ahead of the current position of a remote file."""

MAX_TEXT_BYTES = 4 * 2**20
"""Largest file that `read_text` reads, in bytes."""


def connect(
    url: str, options: Mapping[str, Any] | None = None, bound: str | None = None
) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Args:
        url: a local path or a URL.
        options: arguments of the file system; they override those from the environment.
        bound: the variable of `bounds` whose prefixes the URL must be below, if any.

    Raises:
        StorageError: the URL is not allowed, cannot be opened, or names no bucket.
    """
    with translate_errors("open", url):
        checked = check_url(url, STORAGE_SCHEMES)
        if bound is not None:
            bounds.check_allowed(checked, bound)
        if bound == bounds.OUTPUTS and scheme_of(checked) in WEB and checked.has_secrets:
            raise StorageError(f"{public_url(url)} has a query; expected a folder.")
        if bound == bounds.OUTPUTS and scheme_of(checked) == "hf":
            raise StorageError(
                f"{public_url(url)} cannot be an output: the hub has neither locks nor files that "
                "replace each other one by one. Choose a folder or bucket, and share it with "
                "`rudalle-flows push OUTPUT hf://datasets/OWNER/NAME`."
            )
        if bound == bounds.OUTPUTS and "?versionId=" in checked:
            raise StorageError(f"{public_url(url)} names a version of a file; expected a folder.")
        file_system, path = _file_system(checked, options or {})
        if bound == bounds.OUTPUTS and path == "/":
            raise StorageError(
                f"Cannot open {url}: it is the root of the file system; expected a folder below it."
            )
        return file_system, path


def _file_system(url: Url, options: Mapping[str, Any]) -> tuple[Any, str]:
    """As `connect`, without fsspec's own reading of URLs, which knows chains."""
    if is_local_url(url):
        local = fsspec.filesystem("file")
        # fsspec would take an empty path for the working directory.
        return local, local._strip_protocol(local_path(url)).rstrip("/") or "/"
    scheme, full = scheme_of(url), url.full
    kind = fsspec.get_filesystem_class(scheme)
    from_url = kind._get_kwargs_from_urls(full)
    file_system = kind(**{**from_url, **_options_from_environment(scheme, full), **options})
    return file_system, str(file_system._strip_protocol(full)).rstrip("/")


def url_of(file_system: Any, path: str) -> str:
    """The URL of a path in a file system, from which `connect` returns both again."""
    account = getattr(file_system, "account_name", None)
    if account and "abfs" in file_system.protocol:
        container, _, rest = path.partition("/")
        return f"abfs://{container}@{account}.dfs.core.windows.net/{rest}".rstrip("/")
    return str(file_system.unstrip_protocol(path))


def list_folder(file_system: Any, path: str) -> list[str]:
    """The full names of the files and folders directly in a folder; empty if there is none."""
    return [str(entry["name"]) for entry in _entries(file_system, path)]


STAMPS = (
    *("ETag", "etag", "generation", "blob_id"),
    *("LastModified", "last_modified", "updated", "mtime"),
)
"""What file systems tell of a file that changes when it is replaced, the best first."""


def list_stamps(url: str, bound: str = bounds.OUTPUTS) -> dict[str, str]:
    """The files directly in a folder, each with a stamp that changes when it is replaced.

    An object store gets one request per 1,000 files.

    Args:
        url: the folder, which need not exist.
        bound: the variable of `bounds` whose prefixes the URL must be below.

    Returns:
        Stamps by the names of files within the folder.

    Raises:
        StorageError: the storage does not answer or denies the request.
    """
    file_system, path = connect(url, None, bound)
    with translate_errors("list", url):
        entries = _entries(file_system, path)
    return {
        PurePosixPath(str(entry["name"])).name: stamp_of(entry)
        for entry in entries
        if entry["type"] == "file"
    }


def stamp_of(entry: Mapping[str, Any]) -> str:
    """What changes if a file is replaced, from what a file system tells of it."""
    known = next((entry[key] for key in STAMPS if entry.get(key)), entry.get("created"))
    return f"{known} {entry.get('size')} {entry.get('ino')}"


def _entries(file_system: Any, path: str) -> list[Mapping[str, Any]]:
    """The entries of a folder; empty if there is none.

    On S3, `ls` of a folder that does not exist would list the one above it, which a run need not
    be allowed to.
    """
    try:
        if isinstance(file_system, AsyncFileSystem) and hasattr(file_system, "_lsdir"):
            return list(sync(file_system.loop, file_system._lsdir, path))
        return list(file_system.ls(path, detail=True))
    except FileNotFoundError:
        return []


def is_local(file_system: Any) -> bool:
    """Whether the files are on a disk of this machine."""
    return isinstance(file_system, LocalFileSystem)


def run_concurrently(
    file_system: Any,
    work: Callable[[Item], Result],
    work_async: Callable[[Item], Awaitable[Result]],
    items: Iterable[Item],
) -> list[Result]:
    """Call `work` for all items, at most `MAX_CONCURRENT` at a time.

    Args:
        file_system: the fsspec file system that `work` uses.
        work: runs in threads.
        work_async: does the same as `work`. It is called instead if the file system has an event
            loop, because that takes half the time per request.
        items: arguments for `work`.

    Returns:
        The results, in the order of the items.

    Raises:
        Exception: the first exception of `work` ends all calls.
    """
    if isinstance(file_system, AsyncFileSystem):
        results: list[Result] = sync(file_system.loop, _gather, work_async, items)
        return results
    with ThreadPoolExecutor(MAX_CONCURRENT) as pool:
        return list(pool.map(work, items))


async def _gather(work: Callable[[Item], Awaitable[Result]], items: Iterable[Item]) -> list[Result]:
    slots = asyncio.Semaphore(MAX_CONCURRENT)

    async def work_in_slot(item: Item) -> Result:
        async with slots:
            return await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work_in_slot(item)) for item in items]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def read_text(path_or_url: str, what: str = "file") -> str:
    """Read a small UTF-8 text that the person who runs a command names.

    Args:
        path_or_url: a local path or a URL.
        what: name of the file in errors, for example "configuration".

    Raises:
        StorageError: the file cannot be read, is larger than `MAX_TEXT_BYTES`, or is not UTF-8.
    """
    try:
        return read_small(path_or_url, what, MAX_TEXT_BYTES).decode("utf-8")
    except UnicodeDecodeError:
        raise StorageError(f"The {what} {public_url(path_or_url)} is not UTF-8 text.") from None


def read_small(path_or_url: str, what: str, max_bytes: int) -> bytes:
    """Read a file that the person who runs a command names.

    Args:
        path_or_url: a local path or a URL.
        what: name of the file in errors.
        max_bytes: the largest size.

    Raises:
        StorageError: the file cannot be read, or is larger.
    """
    with (
        translate_errors(f"read the {what}", path_or_url),
        open_input(path_or_url, what, OWN) as stream,
    ):
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        name = f"The {what} {public_url(path_or_url)}"
        raise StorageError(f"{name} is too large: expected at most {max_bytes:,} bytes.")
    return content


def read_start(url: str, size: int, what: str, rules: Reading) -> bytes:
    """Read at most the first `size` bytes of a file that a stranger may have named.

    Args:
        url: a local path or a URL.
        size: number of bytes.
        what: name of the file in errors.
        rules: time limits, and which hosts are allowed.

    Raises:
        StorageError: the file cannot be read, or takes too long; a `TransientError` if the server
            could not be asked, and a retry may succeed.
    """
    with translate_errors(f"read the {what}", url):
        checked = _check_input(url, rules)
        if is_local_url(checked):
            with open_regular(_file_system(checked, {})[1]) as stream:
                return stream.read(size)
        try:
            return _read_remote_start(checked, size, rules)
        except TimeoutError as error:  # not transient: it could stop a shard again and again
            raise StorageError(
                f"Cannot read the {what} {public_url(url)}: {error.strerror}."
            ) from None


_SILENT = SilentServers()


def _read_remote_start(url: Url, size: int, rules: Reading) -> bytes:
    server = "/".join(url.full.split("/")[:3])
    _SILENT.check(server)
    try:
        if scheme_of(url) in WEB:
            content = http_files.read_start(url.full, size, rules)
        else:
            content = call_within(rules.total_seconds, _read_start, url, size)
    except TimeoutError:
        _SILENT.note(server, answered=False)
        raise rules.too_slow() from None
    _SILENT.note(server, answered=True)
    return content


def _read_start(url: Url, size: int) -> bytes:
    file_system, path = _file_system(url, {})
    with file_system.open(path, "rb", block_size=READ_AHEAD, cache_type="readahead") as stream:
        return bytes(stream.read(size))


@contextmanager
def open_input(url: str, what: str = "file", rules: Reading = TABLE) -> Iterator[BinaryIO]:
    """Open a path or URL as a seekable stream, and close it at the end of the block.

    Errors of reading from the stream are not translated: wrap the reads in `translate_errors`.

    Args:
        url: a local path or a URL.
        what: name of the file in errors.
        rules: time limits, and which hosts are allowed.

    Raises:
        StorageError: the file is not allowed, or cannot be opened.
    """
    with translate_errors(f"read the {what}", url):
        checked = _check_input(url, rules)
        stream: BinaryIO
        if is_local_url(checked):
            stream = open_regular(_file_system(checked, {})[1])
        elif scheme_of(checked) in WEB:
            stream = io.BufferedReader(http_files.HttpFile(checked.full, rules), READ_BUFFER)
        else:
            raw = call_within(rules.total_seconds, _open, checked)
            stream = io.BufferedReader(TimedFile(raw, rules), READ_BUFFER)
    with stream:
        yield stream


def _open(url: Url) -> BinaryIO:
    file_system, path = _file_system(url, {})
    stream: BinaryIO = file_system.open(path, "rb", block_size=READ_AHEAD, cache_type="readahead")
    return stream


def _check_input(url: str, rules: Reading) -> Url:
    checked = check_url(url, STORAGE_SCHEMES)
    if rules.bounded:
        bounds.check_allowed(checked, bounds.INPUTS)
    return checked


def _options_from_environment(protocol: str, url: str) -> Mapping[str, Any]:
    """Options for the file system of a protocol; fsspec keeps one instance per set of options."""
    if protocol in WEB:
        return {"client_kwargs": {"trust_env": not hosts.is_loopback(urlsplit(url).hostname or "")}}
    if protocol not in S3_PROTOCOLS:
        return NO_LISTINGS_CACHE
    environment = os.environ
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    has_retries = "AWS_MAX_ATTEMPTS" in environment or "AWS_RETRY_MODE" in environment
    retries = {} if has_retries else {"retries": RETRIES}
    return {
        "endpoint_url": environment.get("AWS_ENDPOINT_URL_S3")
        or environment.get("AWS_ENDPOINT_URL"),
        "key": environment.get("AWS_ACCESS_KEY_ID"),
        "secret": environment.get("AWS_SECRET_ACCESS_KEY"),
        "token": environment.get("AWS_SESSION_TOKEN"),
        "client_kwargs": {"region_name": region} if region else {},
        "config_kwargs": {**CLIENT, **retries, **configured},
        **NO_LISTINGS_CACHE,
    }
