"""A reverse proxy that breaks things: it stands before an S3 server and spoils chosen requests.

Written here because nothing ready fits: toxiproxy is in no package index that Python or Debian
machines use, and mitmproxy, three dozen packages, answers and delays but neither resets connections
nor tears uploads in half. One request a connection, bodies in memory: enough for small datasets.
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
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

Kind = Literal["answer", "reset", "torn", "unheard", "cut", "stall"]

KINDS: tuple[Kind, ...] = ("answer", "reset", "torn", "unheard", "cut", "stall")
"""What can happen to a request: an error as answer; the connection reset at once, after half of the
request has reached the server, after all of it has (and was obeyed), or after half of the answer;
or silence until the client gives up."""

SLOW_DOWN = (503, "SlowDown", "Please reduce your request rate.")


@dataclass(frozen=True)
class Request:
    """A request: its number from 1, and what it asks for."""

    number: int
    method: str
    path: str
    query: dict[str, str]
    headers: str


@dataclass(frozen=True)
class Fault:
    """What to do to a request; `answer` is status, code, message; `then` is called with it."""

    kind: Kind
    answer: tuple[int, str, str] = SLOW_DOWN
    then: Callable[[], None] = lambda: None


class FaultProxy:
    """A running proxy; set `decide` to choose the fault of each request, None for none."""

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
        listening = loop.run_until_complete(asyncio.start_server(proxy._serve, "127.0.0.1", 0))
        proxy.endpoint = "http://127.0.0.1:{1}".format(*listening.sockets[0].getsockname())
        thread = threading.Thread(target=loop.run_forever, name="fault-proxy")
        thread.start()
        try:
            yield proxy
        finally:
            asyncio.run_coroutine_threadsafe(_shut_down(listening), loop).result(timeout=30)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._serving.add(task)  # the loop itself does not keep tasks alive
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
        fault = self._judge(head)
        if fault is None:
            writer.write(await self._forward(head, body) or b"")
            await writer.drain()
        else:
            await self._spoil(fault, head, body, writer)

    def _judge(self, head: str) -> Fault | None:
        method, target, _ = head.split("\r\n", 1)[0].split(" ")
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        request = Request(len(self.requests) + 1, method, parts.path, query, head)
        self.requests.append(request)
        fault = self.decide(request)
        if fault is not None:
            self.faults.append(fault.kind)
        return fault

    async def _spoil(
        self, fault: Fault, head: str, body: bytes, writer: asyncio.StreamWriter
    ) -> None:
        kind = fault.kind
        if kind == "answer":
            writer.write(_error(*fault.answer))
            fault.then()
            await writer.drain()
            return
        if kind == "torn":
            await self._forward(head, body[: len(body) // 2], whole=False)
        if kind in ("unheard", "cut"):
            answer = await self._forward(head, body) or b""
            if kind == "cut":
                start = answer.find(b"\r\n\r\n") + 4
                writer.write(answer[: start + (len(answer) - start) // 2])
                await writer.drain()
        if kind == "stall":
            await asyncio.sleep(STALL_SECONDS)
        fault.then()
        _reset(writer)

    async def _forward(self, head: str, body: bytes, whole: bool = True) -> bytes | None:
        """Send a request to the server and read its answer; None where it could not be had."""
        head = re.sub(r"\r\n(expect|connection):[^\r]*", "", head, flags=re.IGNORECASE)
        head = head.removesuffix("\r\n") + "Connection: close\r\n\r\n"
        reader, writer = await asyncio.open_connection(*self._upstream)
        try:
            writer.write(head.encode("latin-1") + body)
            await writer.drain()
            if whole:
                return await reader.read()
            await asyncio.sleep(0.05)  # for the half to arrive
            return None
        finally:
            _reset(writer)


STALL_SECONDS = 4.0
"""How long a stalled request is silent; clients under test give up before (`CLIENT_TIMEOUT`)."""

CLIENT_OPTIONS = {"connect_timeout": 2, "read_timeout": 2}


def _error(status: int, code: str, message: str) -> bytes:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    head = (
        f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with RST instead of FIN, as a host does that has lost its state."""
    taken = writer.get_extra_info("socket")
    if taken is not None and not writer.is_closing():
        with contextlib.suppress(OSError):
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _shut_down(listening: asyncio.Server) -> None:
    listening.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
