"""Any path or fsspec URL: opened, read, and asked for many things at once.

The only module that imports fsspec. S3 (`s3://bucket/prefix`, through s3fs) takes its endpoint and
credentials from the standard environment variables: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION; without them, from wherever botocore looks.
Other options come from where fsspec looks for them, such as FSSPEC_S3='{"config_kwargs": ...}'.
"""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.local import LocalFileSystem

from rudalle_lib.errors import StorageError
from rudalle_lib.storage_errors import clear_errors, public_url

Item = TypeVar("Item")
Result = TypeVar("Result")

S3_PROTOCOLS = ("s3", "s3a")

#: How often botocore tries a request, after pauses that grow, differ and end at 20 s. Its standard
#: mode also gives up early where nearly every request of the process fails.
RETRIES = {"mode": "standard", "total_max_attempts": 5}

#: Requests under way at once; object stores answer each in some ten milliseconds.
AT_ONCE = 16

#: Bytes that are read ahead of a remote table.
READ_AHEAD = 8 * 2**20
READ_BUFFER = 2**20

#: A larger file is no text that `read_text` is for.
MAX_TEXT_BYTES = 4 * 2**20


def connect(url: str, options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it."""
    with clear_errors("open", url):
        protocol = url.partition("://")[0] if "://" in url else "file"
        given = {**_options_from_environment(protocol), **(options or {})}
        file_system, path = fsspec.core.url_to_fs(url, **given)
        if protocol in S3_PROTOCOLS and not path.strip("/"):
            raise StorageError(f"{url} names no bucket; expected s3://bucket/prefix.")
        return file_system, path.rstrip("/")


def is_local(file_system: Any) -> bool:
    """Whether these are the files of this machine."""
    return isinstance(file_system, LocalFileSystem)


def some_at_once(
    file_system: Any,
    work: Callable[[Item], Result],
    in_its_loop: Callable[[Item], Awaitable[Result]],
    items: Iterable[Item],
) -> list[Result]:
    """The results of `work` for all items, in order, `AT_ONCE` of them under way.

    A file system with an event loop does `in_its_loop` instead, which must come to the same: there
    a request costs half of what handing each over from a thread does. The first error ends all.
    """
    if isinstance(file_system, AsyncFileSystem):
        found: list[Result] = sync(file_system.loop, _gather, in_its_loop, items)
        return found
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(work, items))


async def _gather(work: Callable[[Item], Awaitable[Result]], items: Iterable[Item]) -> list[Result]:
    free = asyncio.Semaphore(AT_ONCE)

    async def one(item: Item) -> Result:
        async with free:
            return await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def read_text(path_or_url: str, what: str = "file") -> str:
    """Read a small UTF-8 text from any path or URL; `what` names it in errors."""
    with clear_errors(f"read the {what}", path_or_url), open_input(path_or_url, what) as stream:
        content = stream.read(MAX_TEXT_BYTES + 1)
    name = f"The {what} {public_url(path_or_url)}"
    if len(content) > MAX_TEXT_BYTES:
        raise StorageError(f"{name} is too large: expected at most {MAX_TEXT_BYTES:,} bytes.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise StorageError(f"{name} is not UTF-8 text.") from None


@contextmanager
def open_input(url: str, what: str = "file") -> Iterator[BinaryIO]:
    """Open any path or URL for reading in pieces: a seekable stream, closed at the end.

    `what` names it in errors; those of reading itself are the reader's to make clear.
    """
    with clear_errors(f"read the {what}", url):
        file_system, path = connect(url)
        stream: BinaryIO
        if is_local(file_system):
            stream = open(path, "rb", READ_BUFFER)  # noqa: SIM115 - closed below
        else:
            raw = file_system.open(path, "rb", block_size=READ_AHEAD, cache_type="readahead")
            stream = io.BufferedReader(raw, READ_BUFFER)
    with stream:
        yield stream


def _options_from_environment(protocol: str) -> dict[str, Any]:
    """Options of the file system of a protocol; fsspec keeps one instance per set of options."""
    if protocol not in S3_PROTOCOLS:
        return {}
    environment = os.environ
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    asked = "AWS_MAX_ATTEMPTS" in environment or "AWS_RETRY_MODE" in environment
    retries = {} if asked else {"retries": RETRIES}
    return {
        "endpoint_url": environment.get("AWS_ENDPOINT_URL_S3")
        or environment.get("AWS_ENDPOINT_URL"),
        "key": environment.get("AWS_ACCESS_KEY_ID"),
        "secret": environment.get("AWS_SECRET_ACCESS_KEY"),
        "token": environment.get("AWS_SESSION_TOKEN"),
        "client_kwargs": {"region_name": region} if region else {},
        "config_kwargs": {"connect_timeout": 10, "read_timeout": 60, **retries, **own},
        "use_listings_cache": False,  # other workers write to the same folder
    }
