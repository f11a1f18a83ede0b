"""A reverse proxy that injects faults: it is in front of an S3 server and disturbs chosen requests.

No existing tool fits: toxiproxy is neither on PyPI nor in Debian; mitmproxy depends on three dozen
packages and can answer and delay requests, but cannot reset connections or truncate uploads. The
proxy handles one request per connection and keeps bodies in memory: enough for small datasets.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import parse_qsl, urlsplit

Kind = Literal["error", "reset", "half request", "no response", "half response", "stall"]

KINDS: tuple[Kind, ...] = get_args(Kind)
"""What can happen to a request: an error response; a connection reset at once, after half of the
request has reached the server, after the server has processed all of it, or after half of the
response; or silence until the client gives up."""

SLOW_DOWN = (503, "SlowDown", "Please reduce your request rate.")


@dataclass(frozen=True)
class Request:
    """A request; `number` counts from 1."""

    number: int
    method: str
    path: str
    query: dict[str, str]
    headers: str


@dataclass(frozen=True)
class Fault:
    """What happens to a request.

    Attributes:
        kind: One of `KINDS`.
        response: Status, code and message of an error response.
        then: Called when the fault happens.
    """

    kind: Kind
    response: tuple[int, str, str] = SLOW_DOWN
    then: Callable[[], None] = lambda: None


class FaultProxy:
    """A running proxy.

    Attributes:
        decide: Returns the fault of a request, None for none; tests replace it.
        requests: All requests so far.
        faults: Kinds of all faults so far.
        endpoint: URL of the proxy.
    """

    def __init__(self, upstream: str) -> None:
        address = urlsplit(upstream)
        self._upstream = (str(address.hostname), int(address.port or 80))
        self.decide: Callable[[Request], Fault | None] = lambda _: None
        self.requests: list[Request] = []
        self.faults: list[Kind] = []
        self.endpoint = ""
        self._serving: set[asyncio.Task[None] | None] = set()

    @staticmethod
    @contextlib.contextmanager
    def start(upstream: str) -> Iterator[FaultProxy]:
        """Run a proxy in a thread, on a free port of the loopback interface."""
        proxy, loop = FaultProxy(upstream), asyncio.new_event_loop()
        server = loop.run_until_complete(asyncio.start_server(proxy._serve, "127.0.0.1", 0))
        proxy.endpoint = "http://127.0.0.1:{1}".format(*server.sockets[0].getsockname())
        thread = threading.Thread(target=loop.run_forever, name="fault-proxy")
        thread.start()
        try:
            yield proxy
        finally:
            asyncio.run_coroutine_threadsafe(_shut_down(server), loop).result(timeout=30)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._serving.add(task)  # the loop holds only weak references to tasks
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._handle(reader, writer)
            with contextlib.suppress(OSError):
                writer.close()
                await asyncio.wait_for(writer.wait_closed(), STALL_SECONDS)
        finally:
            writer.transport.abort()
            self._serving.discard(task)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        if "expect: 100-continue" in head.lower():
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = re.search(r"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
        body = await reader.readexactly(int(length[1]) if length else 0)
        fault = self._choose_fault(head)
        if fault is None:
            writer.write(await self._forward(head, body) or b"")
            await writer.drain()
        else:
            await self._inject(fault, head, body, writer)

    def _choose_fault(self, head: str) -> Fault | None:
        method, target, _ = head.split("\r\n", 1)[0].split(" ")
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        request = Request(len(self.requests) + 1, method, parts.path, query, head)
        self.requests.append(request)
        fault = self.decide(request)
        if fault is not None:
            self.faults.append(fault.kind)
        return fault

    async def _inject(
        self, fault: Fault, head: str, body: bytes, writer: asyncio.StreamWriter
    ) -> None:
        kind = fault.kind
        if kind == "error":
            writer.write(_error(*fault.response))
            fault.then()
            await writer.drain()
            return
        if kind == "half request":
            await self._forward(head, body[: len(body) // 2], complete=False)
        if kind in ("no response", "half response"):
            response = await self._forward(head, body) or b""
            if kind == "half response":
                start = response.find(b"\r\n\r\n") + 4
                writer.write(response[: start + (len(response) - start) // 2])
                await writer.drain()
        if kind == "stall":
            await asyncio.sleep(STALL_SECONDS)
        fault.then()
        _reset(writer)

    async def _forward(self, head: str, body: bytes, complete: bool = True) -> bytes | None:
        """Send a request to the server and return its response; None if the request is partial."""
        head = re.sub(r"\r\n(expect|connection):[^\r]*", "", head, flags=re.IGNORECASE)
        head = head.removesuffix("\r\n") + "Connection: close\r\n\r\n"
        reader, writer = await asyncio.open_connection(*self._upstream)
        try:
            writer.write(head.encode("latin-1") + body)
            await writer.drain()
            if complete:
                return await reader.read()
            await asyncio.sleep(0.05)  # until the server has received it
            return None
        finally:
            _reset(writer)


STALL_SECONDS = 4.0
"""How long a stalled request is silent; clients give up earlier, see `CLIENT_OPTIONS`."""

CLIENT_OPTIONS = {"connect_timeout": 2, "read_timeout": 2}
"""Timeouts of the clients under test, in seconds."""


def _error(status: int, code: str, message: str) -> bytes:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    head = (
        f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with RST instead of FIN, like a host that has crashed."""
    connection = writer.get_extra_info("socket")
    if connection is not None and not writer.is_closing():
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _shut_down(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
