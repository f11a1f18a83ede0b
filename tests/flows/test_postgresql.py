"""A run of thousands of tasks against a Prefect server whose database is PostgreSQL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.cli.options import PACKAGED
from flows.prefect_settings import DEFAULTS
from tests.support.postgresql_server import PostgresqlServer
from tests.support.servers import PATIENCE, prefect_server

pytestmark = pytest.mark.slow

ROOT = PACKAGED.parent
SHARDS = 1000
SETTINGS = {
    **DEFAULTS,
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",  # the server logs what it drops
    "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60",  # a busy machine needs more than 5 s
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
        command = [sys.executable, "-m", "tests.benchmarks.dummy_engine", "--shards", str(SHARDS)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        figures = json.loads(done.stdout.splitlines()[-1])
        assert figures["shards"] == SHARDS
        expected = f"{figures['task_runs'] + 2}"  # plan and report
        assert int(expected) >= 5000
        completed = "select count(*) from task_run where state_type = 'COMPLETED'"
        deadline = time.monotonic() + PATIENCE
        while database.query(completed) != expected:  # the server records them after the run
            log = tmp_path / "server.log"
            assert time.monotonic() < deadline, database.query(completed) + log.read_text()[-2000:]
            time.sleep(1)
        assert database.query("select state_type from flow_run") == "COMPLETED"
    growth = figures["last_quarter_mb"] / figures["second_quarter_mb"]
    assert growth < 1.05, figures
