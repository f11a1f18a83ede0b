"""The local server answers pages of its own only, and no client can fill or block it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from flows.ui import local_server
from flows.ui.local_server import (
    HOST,
    MAX_BODY,
    MAX_CONNECTIONS,
    BoundedProtocol,
    LocalServer,
    Receive,
    Scope,
    Send,
)


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the size of the body."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        return await send({"type": "lifespan.shutdown.complete"})
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})
    return None


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    running = LocalServer(application, 0)
    running.start()
    yield running
    running.close()


def ask(
    server: LocalServer, method: str = "GET", path: str = "/", body: bytes = b"", **headers: str
) -> tuple[int, bytes]:
    """Send a request with headers in which `_` stands for `-`; without a Host header of its own."""
    connection = http.client.HTTPConnection(HOST, server.port, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    sent = {"Host": f"{HOST}:{server.port}", "Content-Length": str(len(body))}
    for name, value in (sent | {key.replace("_", "-"): v for key, v in headers.items()}).items():
        if value:
            connection.putheader(name, value)
    connection.endheaders(body)
    response = connection.getresponse()
    found = response.status, response.read()
    connection.close()
    return found


def raw(server: LocalServer, request: bytes, wait: float = 20) -> bytes:
    """What the server answers to the bytes of a request, until it closes the connection."""
    with socket.create_connection((HOST, server.port), timeout=wait) as connection:
        connection.sendall(request)
        received = b""
        while part := connection.recv(1 << 16):
            received += part
        return received


HOSTS = ("127.0.0.1:{port}", "localhost:{port}", "LOCALHOST:{port}", "localhost", "127.0.0.1:9999")
FOREIGN = (
    "attacker.example", "attacker.example:{port}", "127.0.0.1.nip.io:{port}", "0.0.0.0:{port}",
    "localhost.evil:{port}", "127.0.0.1@evil", "evil#localhost", "localhost:{port}:x",
    "localhost:", "2130706433",
)  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_names_of_this_machine_are_answered(server: LocalServer, host: str) -> None:
    host = host.format(port=server.port)
    assert ask(server, Host=host) == (200, b"0")
    assert ask(server, "POST", body=b"abc", Host=host, Origin=f"http://{host}") == (200, b"3")


@pytest.mark.parametrize("host", FOREIGN)
def test_a_foreign_host_is_rejected(server: LocalServer, host: str) -> None:
    """DNS rebinding: the attacker's name leads to this machine."""
    status, body = ask(server, Host=host.format(port=server.port))
    assert status in (400, 403)
    if status == 403:
        assert "Host header" in json.loads(body)["error"]


def test_a_request_without_or_with_two_hosts_is_rejected(server: LocalServer) -> None:
    none = raw(server, b"GET / HTTP/1.0\r\n\r\n")
    two = raw(server, b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n")
    assert none.split()[1] == b"403" and two.split()[1] in (b"400", b"403")


ORIGINS = (
    "http://attacker.example", "null", "https://127.0.0.1:{port}", "http://localhost:{port}",
    "http://127.0.0.1:1", "http://127.0.0.1:{port}.evil", "file://", "http://127.0.0.1:{port}@evil",
)  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("origin", ORIGINS)
def test_pages_of_other_origins_are_rejected(server: LocalServer, origin: str, method: str) -> None:
    status, body = ask(server, method, Origin=origin.format(port=server.port))
    assert status == 403 and "Only pages of this server" in json.loads(body)["error"]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_only_a_link_may_come_from_another_site(server: LocalServer, site: str) -> None:
    for method, mode, expected in (
        ("GET", "navigate", 200),
        ("GET", "no-cors", 403),
        ("POST", "navigate", 403),
        ("POST", "no-cors", 403),
    ):
        found = ask(server, method, Sec_Fetch_Site=site, Sec_Fetch_Mode=mode)
        assert found[0] == expected, (method, mode)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
def test_other_methods_are_not_allowed(server: LocalServer, method: str) -> None:
    status, body = ask(server, method)
    assert status == 405 and "GET, HEAD, POST" in json.loads(body)["error"]


def test_uploads_are_rejected_before_they_are_received(server: LocalServer) -> None:
    started = time.monotonic()
    head = f"POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 60000000\r\n\r\n".encode()
    assert raw(server, head).split()[1] == b"413"
    assert ask(server, "POST", "/gradio_api/upload", b"x")[0] == 403
    assert time.monotonic() - started < 5


def test_a_body_without_a_length_is_counted(server: LocalServer) -> None:
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    head = f"POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    assert b" 200 " in raw(server, head[:-2] + b"Connection: close\r\n\r\n" + chunk + b"0\r\n\r\n")
    with socket.create_connection((HOST, server.port), timeout=20) as connection:
        connection.sendall(head)
        try:
            for _ in range(10 * MAX_BODY // 0x10000):
                connection.sendall(chunk)
            answer = connection.recv(1 << 16)
        except OSError:  # the server has closed the connection
            answer = b""
    assert answer == b"" or answer.split()[1] == b"413"
    assert ask(server) == (200, b"0")


@pytest.mark.parametrize("length", ["-1", "+5", "1e3", "99999999999999999999999", "five"])
def test_a_length_that_is_not_a_number_is_rejected(server: LocalServer, length: str) -> None:
    head = f"POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n"
    assert raw(server, head.encode()).split()[1] in (b"400", b"413")


def test_a_length_that_is_a_lie_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    server = LocalServer(application, 0)
    monkeypatch.setattr(server._server.config, "app", local_server.LocalOnly(application, 0.5))
    server.start()
    head = f"POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100\r\n\r\nfew".encode()
    assert raw(server, head).split()[1] == b"408"
    server.close()


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"\x16\x03\x01\x02"],
)
def test_a_connection_that_sends_no_request_is_closed(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(BoundedProtocol, "seconds", 0.5)
    started = time.monotonic()
    assert raw(server, sent) in (b"",) or sent.startswith(b"\x16")
    assert time.monotonic() - started < 5


def test_dripping_bytes_do_not_keep_a_connection(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedProtocol, "seconds", 0.5)
    deadline = time.monotonic() + 10
    with socket.create_connection((HOST, server.port), timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
        with pytest.raises(OSError):
            while time.monotonic() < deadline:
                connection.sendall(b"x")
                time.sleep(0.05)
    assert time.monotonic() < deadline


def test_many_slow_connections_do_not_keep_others_out(server: LocalServer) -> None:
    with ExitStack() as slow:
        for _ in range(3 * MAX_CONNECTIONS):
            connection = socket.create_connection((HOST, server.port), timeout=20)
            slow.enter_context(connection)
            with suppress(OSError):  # already closed to make room
                connection.sendall(b"GET / HTTP/1.1\r\n")
        assert ask(server) == (200, b"0")
        assert len(server._server.server_state.connections) <= MAX_CONNECTIONS + 1


def test_a_slow_answer_keeps_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page waits for images in a request that stays open."""
    monkeypatch.setattr(BoundedProtocol, "seconds", 0.3)
    release = threading.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        import asyncio

        if scope["type"] == "http":
            await receive()
            while not release.is_set():
                await asyncio.sleep(0.05)
        await application(scope, receive, send) if scope["type"] != "http" else await _answer(send)

    async def _answer(send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"late"})

    server = LocalServer(slow, 0)
    server.start()
    threading.Timer(1.0, release.set).start()
    assert ask(server) == (200, b"late")
    server.close()


def test_a_taken_port_is_an_error(server: LocalServer) -> None:
    with pytest.raises(OSError):
        LocalServer(application, server.port)
