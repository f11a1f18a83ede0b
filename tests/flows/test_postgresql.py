"""A run of thousands of tasks against a Prefect server whose database is PostgreSQL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.cli import PACKAGED
from flows.embedded import DEFAULTS
from tests.postgresql_server import PostgresqlServer
from tests.servers import PATIENCE, prefect_server

pytestmark = pytest.mark.slow

ROOT = PACKAGED.parent
SHARDS = 1000
SETTINGS = {
    **DEFAULTS,
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",  # what the server drops, it tells
    "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60",  # a busy machine takes more than 5 s
}


def test_thousands_of_task_runs_on_postgresql(tmp_path: Path) -> None:
    with (
        PostgresqlServer.start() as database,
        prefect_server(tmp_path, **SETTINGS, PREFECT_API_DATABASE_CONNECTION_URL=database.url) as (
            address,
            _,
        ),
    ):
        environment = {**os.environ, **SETTINGS, "PREFECT_API_URL": address}
        environment |= {"PREFECT_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
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
