"""A run of thousands of tasks against a Prefect server whose database is PostgreSQL."""

from __future__ import annotations

import json
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

import pytest

from flows.cli import PACKAGED
from flows.embedded import DEFAULTS
from tests.postgresql_server import PostgresqlServer

pytestmark = pytest.mark.slow

ROOT = PACKAGED.parent
SHARDS = 1000
PATIENCE = 600.0


@contextmanager
def prefect_on(database: PostgresqlServer, folder: Path) -> Iterator[dict[str, str]]:
    """A Prefect server on the database; gives the environment of processes that use it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    environment = {
        **os.environ,
        **DEFAULTS,
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",  # what the server drops, it tells
        "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60",  # a busy machine takes more than 5 s
        "PREFECT_API_DATABASE_CONNECTION_URL": database.url,
        "PREFECT_HOME": str(folder / "prefect"),
        "PYTHONPATH": str(ROOT),
    }
    words = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *words], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            wait_until_healthy(url, process, folder / "server.log")
            yield {**environment, "PREFECT_API_URL": url}
        finally:
            process.terminate()
            process.wait(60)


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        except (OSError, urllib.error.URLError):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)


def test_thousands_of_task_runs_on_postgresql(tmp_path: Path) -> None:
    with (
        PostgresqlServer.start() as database,
        prefect_on(database, tmp_path) as environment,
    ):
        words = ["-m", "tests.benchmarks.dummy_engine", "--shards", str(SHARDS)]
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        figures = json.loads(done.stdout.splitlines()[-1])
        assert figures["shards"] == SHARDS
        expected = f"{figures['task_runs'] + 2}"  # plan and report
        assert int(expected) >= 5000
        completed = "select count(*) from task_run where state_type = 'COMPLETED'"
        deadline = time.monotonic() + PATIENCE
        while database.ask(completed) != expected:  # the server records them behind the run
            log = tmp_path / "server.log"
            assert time.monotonic() < deadline, database.ask(completed) + log.read_text()[-2000:]
            time.sleep(1)
        assert database.ask("select state_type from flow_run") == "COMPLETED"
    growth = figures["last_quarter_mb"] / figures["second_quarter_mb"]
    assert growth < 1.05, figures
