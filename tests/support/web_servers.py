"""Web servers on loopback for tests: with and without ranges, silent, slow, redirecting."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class WebServer(ThreadingHTTPServer):
    """Serves bytes by path, and records every request.

    Attributes:
        files: content by path, without query.
        redirects: target by path.
        ranges: whether parts of files can be requested.
        cut: whether answers end in the middle.
        query: if given, requests need this query.
        requests: method, path with query, and Range header of each request.
        headers: of each request.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int) -> None:
        super().__init__((host, port), _Request)
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.ranges = True
        self.cut = False
        self.query: str | None = None
        self.requests: list[tuple[str, str, str | None]] = []
        self.headers: list[dict[str, str]] = []

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """The URL of its root, without a slash."""
        return f"http://{self.server_address[0]!s}:{self.port}"


class _Request(BaseHTTPRequestHandler):
    server: WebServer

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers["Range"]
        server.requests.append((self.command, self.path, wanted))
        server.headers.append(dict(self.headers.items()))
        path, _, query = re.sub(r"^http://[^/]*", "", self.path).partition("?")  # of a proxy
        if path in server.redirects:
            self.answer(302, b"", Location=server.redirects[path])
        elif path not in server.files:
            self.answer(404, b"")
        elif server.query is not None and query != server.query:
            self.answer(403, b"")
        elif wanted is None or not server.ranges:
            self.answer(200, server.files[path])
        else:
            content = server.files[path]
            first, last = map(int, wanted.removeprefix("bytes=").split("-"))
            part = content[first : last + 1]
            if not part:
                self.answer(416, b"", Content_Range=f"bytes */{len(content)}")
                return
            shown = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
            self.answer(206, part, Content_Range=shown)

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2 if self.server.cut else None])

    def log_message(self, *_: object) -> None:
        """Write no log."""


@contextmanager
def web_server(host: str = "127.0.0.1", port: int = 0) -> Iterator[WebServer]:
    """A web server that runs until the end of the block."""
    with WebServer(host, port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def slow_server(head: bytes = b"", per_second: float = 0.0) -> Iterator[str]:
    """The URL of a server that accepts connections, and says nothing or very little.

    Args:
        head: is sent at once.
        per_second: bytes that follow per second; 0 sends nothing more.
    """
    ended = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def talk(connection: socket.socket) -> None:
        with connection:
            try:
                connection.sendall(head)
                while not ended.wait(1 / per_second if per_second else 0.1):
                    if per_second:
                        connection.sendall(b"x")
            except OSError:
                return

    def accept() -> None:
        while not ended.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
