"""Reading over HTTP: with time limits, through proxies, and only from hosts that are allowed.

A redirect is followed only after its target has passed the same checks as the first URL. The
addresses that were checked are those that are connected to, so a name that resolves differently the
second time is of no use to an attacker.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import re
import socket
import tempfile
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

from rudalle_lib.storage import bounds, hosts
from rudalle_lib.storage.reading import Reading, call_within
from rudalle_lib.storage.urls import WEB, check_url

if TYPE_CHECKING:
    import aiohttp
    from aiohttp.abc import AbstractResolver

Result = TypeVar("Result")

BLOCK = 8 * 2**20
"""Bytes per request of a file that is read in ranges."""

MAX_BLOCKS = 4
"""Blocks of a file that are kept in memory."""

MAX_DOWNLOAD = 4 * 2**30
"""Largest file, in bytes, that is copied to a temporary file because the server knows no ranges."""

MAX_REDIRECTS = 5

CHUNK = 2**16
"""Bytes that are read from a connection at once."""

PRIVATE = "prompts.allow_private_hosts allows image prompts from private networks"
REDIRECTED = "a public server may not redirect to it"

_REDIRECTS = (301, 302, 303, 307, 308)
_ENCODED = re.compile(r"(?:[!-$&-~]|%[0-9A-Fa-f]{2})+")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class HttpStatusError(OSError):
    """The status of an answer that is not a success."""

    def __init__(self, status: int, reason: str) -> None:
        hint = "; a signature may be missing or expired" if status in (401, 403) else ""
        super().__init__(errno.EIO, f"the server answered {status} {reason}".rstrip() + hint)
        self.status = status


# --- requests ------------------------------------------------------------------------------------


def read_start(url: str, size: int, rules: Reading) -> bytes:
    """Read at most the first `size` bytes of a URL, in one request.

    Raises:
        OSError, aiohttp.ClientError: it cannot be read; `TimeoutError` if it takes too long.
        ValueError: the URL, or one that it redirects to, is not allowed.
    """

    async def read() -> bytes:
        async with _answer(url, rules) as response:
            return await _read_up_to(response, size)

    return _run(read(), rules)


def _run(work: Coroutine[Any, Any, Result], rules: Reading) -> Result:
    """Run in a thread of its own: the caller's may have an event loop, and names resolve slowly."""
    try:
        return call_within(rules.total_seconds + 1, asyncio.run, work)
    except TimeoutError:
        raise rules.too_slow() from None


async def _read_up_to(response: aiohttp.ClientResponse, size: int) -> bytes:
    content = bytearray()
    while chunk := await response.content.read(min(CHUNK, size - len(content))):
        content += chunk
    return bytes(content)


@asynccontextmanager
async def _answer(
    url: str,
    rules: Reading,
    headers: Mapping[str, str] | None = None,
    total_seconds: float | None = None,
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The successful answer to a GET request, after redirects."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(
        total=total_seconds or rules.total_seconds,
        connect=rules.connect_seconds,
        sock_read=rules.read_seconds,
    )
    private_allowed = rules.private_hosts
    for hop in range(MAX_REDIRECTS + 1):
        proxy, addresses = await _check_target(url, rules, private_allowed)
        if hop == 0:  # a public server must not lead into a private network
            private_allowed &= not all(map(hosts.is_public, addresses))
        connector = aiohttp.TCPConnector(resolver=None if proxy else _pinned(addresses))
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            _translate_answer(),
            session.get(_quoted(url), headers=headers, proxy=proxy, allow_redirects=False) as found,
        ):
            if found.status in _REDIRECTS and "Location" in found.headers:
                url = urljoin(url, found.headers["Location"])
                continue
            if found.status in (404, 410):
                raise FileNotFoundError(url)
            if found.status >= 300 and found.status != 416:
                raise HttpStatusError(found.status, found.reason or "")
            yield found
            return
    raise OSError(errno.EIO, f"it redirects more than {MAX_REDIRECTS} times")


@asynccontextmanager
async def _translate_answer() -> AsyncIterator[None]:
    """Turn errors that quote a server's answer into one that does not."""
    import aiohttp

    try:
        yield
    except aiohttp.ClientResponseError:
        raise OSError(errno.EIO, "the answer of the server is not HTTP") from None


async def _check_target(
    url: str, rules: Reading, private_allowed: bool
) -> tuple[str | None, list[str]]:
    """The proxy for a URL, if any, and the addresses of its host; both are checked."""
    check_url(url, WEB)
    if rules.bounded:
        bounds.check_allowed(url, bounds.INPUTS)
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxy = hosts.proxy_for(parts.scheme.lower(), host)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(rules.connect_seconds):
            addresses = await loop.run_in_executor(None, hosts.resolve, host, parts.port or 0)
    except (OSError, UnicodeError):
        if proxy is None:
            raise
        addresses = []  # only the proxy knows the name
    if not private_allowed and not bounds.is_named(url, bounds.INPUTS):
        hint = REDIRECTED if rules.private_hosts else PRIVATE
        hosts.check_public(host, addresses, hint)
    return proxy, addresses


def _pinned(addresses: list[str]) -> AbstractResolver:
    """A resolver that knows only the addresses that were checked."""
    from aiohttp.abc import AbstractResolver, ResolveResult

    class Pinned(AbstractResolver):
        async def resolve(
            self, host: str, port: int = 0, family: int = socket.AF_INET
        ) -> list[ResolveResult]:
            return [
                ResolveResult(
                    hostname=host,
                    host=address,
                    port=port,
                    family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                    proto=0,
                    flags=socket.AI_NUMERICHOST,
                )
                for address in addresses
            ]

        async def close(self) -> None:
            """Nothing is open."""

    return Pinned()


def _quoted(url: str) -> Any:
    """The URL as it is if it is quoted already, so that a signature stays valid."""
    from yarl import URL

    return URL(url, encoded=_ENCODED.fullmatch(url) is not None)


# --- files ---------------------------------------------------------------------------------------


class HttpFile(io.RawIOBase):
    """A file on a web server that can be read anywhere.

    Ranges are requested as needed. A server without ranges sends all of it, which is copied to a
    temporary file in the background.
    """

    def __init__(self, url: str, rules: Reading) -> None:
        """Request the start of the file.

        Raises:
            OSError, aiohttp.ClientError, ValueError: as `read_start`.
        """
        self._url = url
        self._rules = rules
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._download: _Download | None = None
        self._size = 0
        self._version: str | None = None
        status, first, headers = self._request(0)
        if status == 206:
            self._size = self._total(headers, 0, len(first))
            self._version = headers.get("ETag") or headers.get("Last-Modified")
            self._blocks[0] = first
        elif status == 416:  # no bytes at all
            self._size = 0
        elif len(first) <= BLOCK:
            self._size = len(first)
            self._blocks[0] = first
        else:
            self._download = _Download(url, rules)

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """As in `io`."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As in `io`; without ranges, seeking from the end waits for the whole file."""
        start = 0
        if whence == os.SEEK_CUR:
            start = self._position
        elif whence == os.SEEK_END:
            start = self._size if self._download is None else self._download.wait_for_end()
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """As in `io`; may read less than there is."""
        if self._download is not None:
            data = self._download.read(self._position, len(buffer))
        elif self._position >= self._size:
            data = b""
        else:
            number, offset = divmod(self._position, BLOCK)
            data = self._block(number)[offset : offset + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        """End a download and delete its temporary file."""
        if self._download is not None:
            self._download.stop()
        super().close()

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            status, content, headers = self._request(number * BLOCK)
            total = self._total(headers, number * BLOCK, len(content)) if status == 206 else -1
            version = headers.get("ETag") or headers.get("Last-Modified")
            if total != self._size or version != self._version:
                raise OSError(errno.EIO, "the file changed on the server while it was read")
            self._blocks[number] = content
            if len(self._blocks) > MAX_BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _request(self, start: int) -> tuple[int, bytes, Any]:
        """Status, content and headers of the answer for a block; more than a block if whole."""

        async def read() -> tuple[int, bytes, Any]:
            wanted = f"bytes={start}-{start + BLOCK - 1}"
            headers = {"Range": wanted, "Accept-Encoding": "identity"}
            async with _answer(self._url, self._rules, headers) as response:
                partial = response.status == 206
                if partial and response.headers.get("Content-Encoding", "identity") != "identity":
                    raise OSError(errno.EIO, "the server compresses parts of files")
                size = BLOCK if partial else BLOCK + 1
                content = b"" if response.status == 416 else await _read_up_to(response, size)
                return response.status, content, response.headers

        return _run(read(), self._rules)

    def _total(self, headers: Any, start: int, length: int) -> int:
        """The size of the file, from the answer for one of its blocks."""
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        first, last, total = map(int, match.groups()) if match else (-1, -1, -1)
        if first != start or last - first + 1 != length or length < min(BLOCK, total - start):
            raise OSError(errno.EIO, "the server sent another part of the file than requested")
        return total


class _Download:
    """A download in the background, into a temporary file that can be read meanwhile."""

    def __init__(self, url: str, rules: Reading) -> None:
        self._url = url
        self._rules = rules
        self._file = tempfile.TemporaryFile(prefix="rudalle-table-")  # noqa: SIM115
        self._changed = threading.Condition()
        self._size = 0
        self._ended = self._stopped = False
        self._error: BaseException | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def read(self, position: int, size: int) -> bytes:
        """Bytes at a position, once the download has reached it; empty at the end."""
        with self._changed:
            self._wait(lambda: self._size > position or self._ended)
            if self._error is not None and self._size <= position:
                raise self._error
            return os.pread(self._file.fileno(), size, position)

    def wait_for_end(self) -> int:
        """The size of the file, once it is here."""
        with self._changed:
            self._wait(lambda: self._ended)
            if self._error is not None:
                raise self._error
            return self._size

    def stop(self) -> None:
        """End the download at its next chunk."""
        with self._changed:
            self._stopped = True
            if self._ended:
                self._file.close()

    def _wait(self, condition: Any) -> None:
        """Wait as long as the download goes on; it has time limits of its own."""
        while not self._changed.wait_for(condition, 1.0):
            pass

    def _run(self) -> None:
        try:
            asyncio.run(self._copy())
        except BaseException as error:
            self._error = self._rules.too_slow() if isinstance(error, TimeoutError) else error
        with self._changed:
            self._ended = True
            if self._stopped:
                self._file.close()
            self._changed.notify_all()

    async def _copy(self) -> None:
        endless = 365 * 24 * 3600.0
        async with _answer(self._url, self._rules, total_seconds=endless) as response:
            while not self._stopped:
                async with asyncio.timeout(self._rules.total_seconds):
                    content = await _read_up_to(response, BLOCK)
                if not content:
                    return
                if self._size + len(content) > MAX_DOWNLOAD:
                    raise OSError(
                        errno.EIO,
                        f"the server knows no ranges, and the file is larger than {MAX_DOWNLOAD:,} "
                        "bytes; copy it to a disk or an object store",
                    )
                with self._changed:
                    os.pwrite(self._file.fileno(), content, self._size)
                    self._size += len(content)
                    self._changed.notify_all()
