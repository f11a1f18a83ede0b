"""The local Prefect server of `make ui`: it starts, needs a free port, and reports failed runs."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.cli.options import PACKAGED
from flows.ui.demo_server import HOST, run_with, serving
from rudalle_lib.errors import ConfigError
from tests.support.servers import free_ports


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    (port,) = free_ports(1)
    with serving(home, port) as url:
        yield url


def test_the_server_answers_and_keeps_its_database_in_its_home(address: str, home: Path) -> None:
    with urllib.request.urlopen(f"{address}/api/health", timeout=10) as answer:
        assert json.load(answer) is True
    assert (home / "prefect.db").is_file() and (home / "server.log").is_file()


def test_a_taken_port_is_an_error(address: str, tmp_path: Path) -> None:
    port = int(address.rpartition(":")[2])
    error = pytest.raises(ConfigError, match=f"already running at {address}.*choose another --port")
    with error, serving(tmp_path, port):
        pass
    assert not list(tmp_path.iterdir())


def test_a_port_that_cannot_be_bound_is_an_error(tmp_path: Path) -> None:
    with socket.socket() as taken:  # nothing answers at this port
        taken.bind((HOST, 0))
        error = pytest.raises(ConfigError, match="Cannot listen on port .*: Address already in use")
        with error, serving(tmp_path, taken.getsockname()[1]):
            pass


def test_a_server_that_ends_at_once_is_an_error_that_names_its_log(tmp_path: Path) -> None:
    (tmp_path / "prefect.db").write_text("not a database")
    (port,) = free_ports(1)
    error = pytest.raises(ConfigError, match=f"did not start; see its log, {tmp_path}")
    with error, serving(tmp_path, port):
        pass
    assert "file is not a database" in (tmp_path / "server.log").read_text()


def test_a_failed_run_is_an_error_with_its_exit_code(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="failed with exit code 2"):
        run_with(address, str(tmp_path / "missing.yaml"))


def test_it_runs_as_a_module_without_warnings() -> None:
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "flows.ui.demo_server"]
    done = subprocess.run([*command, "--help"], cwd=PACKAGED.parent, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Start a Prefect server" in done.stdout
