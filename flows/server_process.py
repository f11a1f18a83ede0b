"""Prefect's server in a process and a session of its own, which ends with its owner.

Run as a script by `flows.embedded_server`: `python -P server_process.py SOCKET [FOLDER]`, where
SOCKET is the inherited descriptor of the listening socket, and FOLDER a temporary folder to delete
at the end. Standard input is a pipe from the owner: a byte asks the server to stop, and the end of
the pipe means that the owner is gone, however it ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

LOOK = 1.0
"""Seconds between two looks whether the owner is still the parent of this process. Other children
of the owner may hold its end of the pipe open."""

SHUTDOWN = 4.0
"""Seconds in which the server must stop when it is asked to."""


def main(arguments: list[str]) -> None:
    """Serve until asked to stop, or until the owner is gone."""
    # A terminal, systemd or a container may signal all processes. The server ends after its owner.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    folder = arguments[1] if len(arguments) > 1 else None
    stop = threading.Event()
    watch = threading.Thread(target=_watch_owner, args=(os.getppid(), stop.set, folder))
    watch.daemon = True
    watch.start()

    import uvicorn

    class Server(uvicorn.Server):
        """Leaves signals alone, and stops when asked to."""

        @contextlib.contextmanager
        def capture_signals(self):  # type: ignore[no-untyped-def]
            yield

        async def on_tick(self, counter: int) -> bool:
            return await super().on_tick(counter) or stop.is_set()

    config = uvicorn.Config(
        "prefect.server.api.server:create_app",
        factory=True,
        log_level="error",
        lifespan="on",
        timeout_graceful_shutdown=1,
    )
    server = Server(config)
    server.run(sockets=[socket.socket(fileno=int(arguments[0]))])
    _leave(0 if server.started else 3, folder)


def _watch_owner(owner: int, stop: Callable[[], None], folder: str | None) -> None:
    while os.getppid() == owner:
        if select.select([0], [], [], LOOK)[0]:
            if not os.read(0, 1):
                break
            stop()
            time.sleep(SHUTDOWN)
            break
    _leave(0, folder)


def _leave(code: int, folder: str | None) -> None:
    """End the process at once: SQLite's files are consistent at any time."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
