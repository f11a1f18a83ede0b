"""Prefect's server on this machine with a run already in it: `make ui`.

It has a home of its own, so whatever else Prefect knows on this machine is left alone.
"""

from __future__ import annotations

import os
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

from flows.embedded import DEFAULTS
from flows.exits import clear_exit
from rudalle_lib.errors import ConfigError

HOST = "127.0.0.1"
PATIENCE = 600.0
"""Seconds in which the server has to answer: about ten on an idle machine."""


def main(
    config: Annotated[str, typer.Argument(help="What is run, a file or a packaged name.")] = "demo",
    home: Annotated[Path, typer.Option(help="Where Prefect keeps its database.")] = Path(
        "output/prefect"
    ),
    port: Annotated[int, typer.Option(help="Port of the server.")] = 4200,
) -> None:
    """Start the server, run the configuration with it, and serve until interrupted."""
    with clear_exit(), serving(home, port) as address:
        run_with(address, config)
        typer.echo(f"Prefect is at {address}/runs and {address}/artifacts (end with Ctrl+C)")
        while True:
            time.sleep(3600)


@contextmanager
def serving(home: Path, port: int) -> Iterator[str]:
    """A Prefect server for as long as the block runs; gives its address.

    Raises:
        ConfigError: the port is taken, or the server does not answer in time.
    """
    address = f"http://{HOST}:{port}"
    if _answers(address):
        raise ConfigError(f"There is a server at {address} already; stop it, or choose --port.")
    home.mkdir(parents=True, exist_ok=True)
    log = home / "server.log"
    environment = {
        **os.environ,
        **DEFAULTS,
        "PREFECT_HOME": str(home.resolve()),
        "PREFECT_UI_API_URL": f"{address}/api",
        "PREFECT_API_URL": f"{address}/api",
    }
    command = ["-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=output, stderr=output
        )
        try:
            _wait(process, address, log)
            yield address
        finally:
            process.terminate()
            process.wait()


def run_with(address: str, config: str, *more: str) -> None:
    """Run a configuration in a process of its own that reports to the server.

    Raises:
        ConfigError: the run has failed; it has said why.
    """
    environment = {**os.environ, "PREFECT_API_URL": f"{address}/api"}
    command = [sys.executable, "-m", "flows.cli", "run", config, *more]
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode:
        raise ConfigError(f"The run of {config} ended with exit code {done.returncode}.")


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while not _answers(address):
        if process.poll() is not None or time.monotonic() > until:
            raise ConfigError(f"Prefect's server did not start; {log} may say why.")
        time.sleep(0.5)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/api/health", timeout=5):
            return True
    except (OSError, urllib.error.URLError):
        return False


if __name__ == "__main__":
    typer.run(main)
