"""Helpers for servers that tests start: free ports, waiting for an answer, a Prefect server."""

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
"""Seconds to wait for a server to answer; test machines can be very busy."""

PORTS = range(10_000, 32_000)
"""Ports below the range for outgoing connections, which might take a port before its server."""


def free_ports(count: int) -> list[int]:
    """Different local ports on which nothing listens."""
    found: list[int] = []
    with ExitStack() as stack:
        while len(found) < count:
            taken = stack.enter_context(socket.socket())
            with suppress(OSError):  # the port is in use
                port = secrets.choice(PORTS)
                taken.bind(("127.0.0.1", port))
                found.append(port)
    return found


def wait_until_answering(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server answers; fail with the end of its log if it exits or takes too long.

    Args:
        url: is requested every half second.
        process: the server's process.
        log: the server's log file.

    Raises:
        AssertionError: the server has exited, or has not answered within `PATIENCE` seconds.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            urllib.request.urlopen(url, timeout=30).close()
            return
        except OSError:
            log_tail = log.read_text(errors="replace")[-2000:]
            assert process.poll() is None and time.monotonic() < deadline, log_tail
            time.sleep(0.5)


@contextmanager
def prefect_server(folder: Path, **settings: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start a Prefect server, and kill it at the end.

    Args:
        folder: for `server.log` and, unless the settings name another, the database.
        settings: environment variables of the server.

    Yields:
        The URL of its API, and its process.
    """
    (port,) = free_ports(1)
    arguments = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment |= {"PREFECT_HOME": str(folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], env=environment | settings, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}/api"
        wait_until_answering(f"{address}/health", process, log)
        yield address, process
    finally:
        kill_group(process)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a server and all processes in its group, if it still runs."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
