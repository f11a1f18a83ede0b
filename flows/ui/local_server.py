"""A web server for one person on this machine: other sites and broken clients get nothing from it.

A page in the same browser can send requests to a loopback address, also under a name of its own
(DNS rebinding). So a request must name this machine as its `Host`, and come from a page of this
server. Requests are small here; connections that send slowly, or nothing, are closed.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HOST = "127.0.0.1"
"""Loopback only: nobody else may use this machine's devices."""

NAMES = ("127.0.0.1", "localhost", "[::1]")
"""Names of this machine in a `Host` header; the port may be a forwarded one."""

METHODS = ("GET", "HEAD", "POST")
"""Methods that pages use."""

NO_UPLOADS = "/gradio_api/upload"
"""Path of the upload of files, which the page does not need."""

MAX_BODY = 1_000_000
"""Maximum size of a request's body in bytes; ten thousand prompts fit."""

MAX_CONNECTIONS = 64
"""Maximum number of open connections; a new one closes the oldest idle one."""

HEADER_SECONDS = 10.0
"""Time within which a request must have been received up to its body."""

BODY_SECONDS = 20.0
"""Time within which the body must have been received."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class _Rejected(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class LocalOnly:
    """ASGI middleware: rejects requests of other sites, and bodies that are too large or too slow.

    Args:
        app: the application below.
        body_seconds: time within which a body must have been received.
    """

    def __init__(self, app: App, body_seconds: float = BODY_SECONDS) -> None:
        self._app = app
        self._body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":  # the page uses no web sockets
            return await send({"type": "websocket.close", "code": 1008})
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            check_request(scope)
            await self._app(scope, self._bounded(receive), watched)
        except _Rejected as rejected:
            if not started:
                await _answer(send, rejected)
        return None

    def _bounded(self, receive: Receive) -> Receive:
        deadline = time.monotonic() + self._body_seconds
        size, complete = 0, False

        async def bounded() -> Message:
            nonlocal size, complete
            if complete:  # waits until the client leaves
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(deadline - time.monotonic(), 0))
            except TimeoutError:
                raise _Rejected(408, "The request was not received in time.") from None
            size += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if size > MAX_BODY:
                raise _too_large()
            return message

        return bounded


def check_request(scope: Scope) -> None:
    """Check the method, the origin and the announced size of a request.

    Raises:
        _Rejected: when it is not one that a page of this server makes.
    """
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    hosts, origins = headers.get("host", []), headers.get("origin", [])
    if len(hosts) != 1 or _name_of(hosts[0]) not in NAMES:
        raise _Rejected(403, f"Expected a Host header that names {NAMES[0]} or {NAMES[1]}.")
    if scope["method"] not in METHODS:
        raise _Rejected(405, f"Expected one of the methods {', '.join(METHODS)}.")
    if any(origin != f"http://{hosts[0]}" for origin in origins):
        raise _Rejected(403, "Only pages of this server may send requests to it.")
    (site, *_) = headers.get("sec-fetch-site", ["none"])
    (mode, *_) = headers.get("sec-fetch-mode", ["navigate"])
    opened = scope["method"] != "POST" and mode == "navigate"
    if site not in ("none", "same-origin") and not opened:
        raise _Rejected(403, "Only pages of this server may send requests to it.")
    if scope["path"].rstrip("/") == NO_UPLOADS:
        raise _Rejected(403, "This page takes no files.")
    length = headers.get("content-length", ["0"])[0]
    if not length.isdecimal() or int(length[:20]) > MAX_BODY:
        raise _too_large()


def _name_of(host: str) -> str:
    """Return the name in a `Host` header in lower case; empty if the header is not valid."""
    try:
        parts = urlsplit(f"//{host}")
        port = parts.port
    except ValueError:
        return ""
    name = host if port is None else host[: -len(f":{port}")]
    return name.lower() if host in (name, f"{name}:{port}") else ""


def _too_large() -> _Rejected:
    return _Rejected(413, f"Expected a body of at most {MAX_BODY:,} bytes.")


async def _answer(send: Send, rejected: _Rejected) -> None:
    body = json.dumps({"error": str(rejected)}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers.append((b"content-length", str(len(body)).encode()))
    if rejected.status == 405:
        headers.append((b"allow", ", ".join(METHODS).encode()))
    await send({"type": "http.response.start", "status": rejected.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class BoundedProtocol(H11Protocol):
    """A connection that is closed unless it sends a request in time, or if there are too many."""

    seconds = HEADER_SECONDS
    opened = 0.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock; make room for the connection."""
        self.opened = time.monotonic()
        super().connection_made(transport)
        self._watch()
        connections = [c for c in self.connections if isinstance(c, BoundedProtocol)]
        still_open = [c for c in connections if not c.transport.is_closing()]
        if len(still_open) > MAX_CONNECTIONS:
            idle = [connection for connection in still_open if connection.idle]
            min(idle, key=lambda connection: connection.opened, default=self).transport.close()

    def data_received(self, data: bytes) -> None:
        """Pass data on; a part of a request starts the clock, a whole one stops it."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        super().connection_lost(exc)
        self._stop()

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        if not self.idle:
            self._stop()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.seconds, self._close_if_idle)

    def _close_if_idle(self) -> None:
        self._deadline = None
        if self.idle and not self.transport.is_closing():
            self.transport.close()

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class LocalServer:
    """A server in a thread of its own.

    Args:
        app: the ASGI application to serve.
        port: port to listen on; 0 for any free one.

    Raises:
        OSError: when the port is taken.
    """

    def __init__(self, app: App, port: int) -> None:
        self._socket = socket.create_server((HOST, port), backlog=MAX_CONNECTIONS)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            LocalOnly(app),
            http=BoundedProtocol,
            ws="none",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_keep_alive=int(HEADER_SECONDS),
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        run = {"sockets": [self._socket]}
        self._thread = threading.Thread(target=self._server.run, kwargs=run, daemon=True)

    def start(self) -> None:
        """Start serving; connections wait until the application has started."""
        self._thread.start()

    def wait(self) -> None:
        """Wait until the server ends; signals are handled meanwhile."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def close(self) -> None:
        """Stop serving."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
