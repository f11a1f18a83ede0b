"""Servers that tests start: a free port, an answer to wait for, and Prefect's."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

PATIENCE = 600.0
"""Seconds that a server may take to answer: machines of tests can be very busy."""


PORTS = range(10_000, 32_000)
"""Below those that systems give to outgoing connections, which could take one before its server."""


def free_ports(count: int) -> list[int]:
    """Ports of the loopback device that nobody listens on, all different."""
    found: list[int] = []
    with ExitStack() as stack:
        while len(found) < count:
            taken = stack.enter_context(socket.socket())
            with suppress(OSError):  # somebody has it
                port = secrets.choice(PORTS)
                taken.bind(("127.0.0.1", port))
                found.append(port)
    return found


def wait_until_answering(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when a server answers; fail with its last words when it has ended or takes too long.

    Args:
        url: asked every half second.
        process: the server's own.
        log: what it has said so far.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            urllib.request.urlopen(url, timeout=30).close()
            return
        except OSError:
            said = log.read_text(errors="replace")[-2000:]
            assert process.poll() is None and time.monotonic() < deadline, said
            time.sleep(0.5)


@contextmanager
def prefect_server(folder: Path, **settings: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A Prefect server of its own; gives the URL of its API, and its process.

    Args:
        folder: for its database, unless the settings name another, and for `server.log`.
        settings: environment variables of the server.
    """
    (port,) = free_ports(1)
    words = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment |= {"PREFECT_HOME": str(folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    log = folder / "server.log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, *words], env=environment | settings, stdout=said,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}/api"
        wait_until_answering(f"{address}/health", process, log)
        yield address, process
    finally:
        kill_group(process)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a server with all of its own processes, if it still runs."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
