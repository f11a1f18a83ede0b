"""A local Prefect server that shows a finished run: `make ui`.

It has its own Prefect home, so other Prefect data on this machine is not touched.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from flows.embedded_server import Process
from flows.exits import translate_exit
from flows.prefect_settings import DEFAULTS
from flows.terminal import safe_terminal
from flows.watchdog import install_in_program
from rudalle_lib.errors import ConfigError

HOST = "127.0.0.1"
"""Address that the server listens on: loopback only."""

STARTUP_TIMEOUT = 600.0
"""Seconds within which the server must answer; an idle machine needs about ten."""


def main(
    config: Annotated[
        str, typer.Argument(help="Configuration to run: a file, or the name of a packaged one.")
    ] = "demo",
    home: Annotated[
        Path, typer.Option(help="Folder for Prefect's database and the server's log.")
    ] = Path("output/prefect"),
    port: Annotated[int, typer.Option(help="Port that the server listens on.")] = 4200,
) -> None:
    """Start a Prefect server, run a configuration on it, and serve until interrupted."""
    with translate_exit(), serving(home, port) as address:
        run_with(address, config)
        typer.echo(f"Prefect is at {address}/runs and {address}/artifacts (Ctrl-C to stop)")
        while True:
            time.sleep(3600)


@contextmanager
def serving(home: Path, port: int) -> Iterator[str]:
    """Run a Prefect server for the duration of the block; yields its address.

    Raises:
        ConfigError: when the port is taken, or the server does not answer in time.
    """
    address = f"http://{HOST}:{port}"
    if _answers(address):
        raise ConfigError(
            f"A server is already running at {address}: stop it, or choose another --port."
        )
    home.mkdir(parents=True, exist_ok=True)
    log = home / "server.log"
    environment = {
        **os.environ,
        **DEFAULTS,
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR",  # for the server's log
        "PREFECT_HOME": str(home.resolve()),
        "PREFECT_UI_API_URL": f"{address}/api",
        "PREFECT_API_URL": f"{address}/api",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": address,  # no other site may read the runs
    }
    try:
        listening = socket.create_server((HOST, port))
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on port {port}: {os.strerror(error.errno or 0)}. Choose another --port."
        ) from None
    with listening, log.open("w+b") as output:
        process = Process(listening, environment, log=output)
        try:
            _wait_until_ready(process, address, log)
            yield address
        finally:
            process.stop()


def run_with(address: str, config: str, *options: str) -> None:
    """Run a configuration in a separate process that reports to the server.

    Raises:
        ConfigError: when the run fails; the process has printed the reason.
    """
    environment = {**os.environ, "PREFECT_API_URL": f"{address}/api"}
    command = [sys.executable, "-m", "flows.cli", "run", config, *options]
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode:
        raise ConfigError(
            f"The run of {config} failed with exit code {done.returncode}; see the message above."
        )


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + STARTUP_TIMEOUT
    while not _answers(address):
        if process.poll() is not None or time.monotonic() > deadline:
            raise ConfigError(f"The Prefect server did not start; see its log, {log}.")
        time.sleep(0.5)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/api/health", timeout=5):
            return True
    except (OSError, urllib.error.URLError):
        return False


if __name__ == "__main__":
    install_in_program()
    with safe_terminal():
        typer.run(main)
