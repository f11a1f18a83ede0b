"""The embedded server: its session, its end, its death and the databases it cannot use."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from flows import embedded_server
from flows.cli.options import PACKAGED
from flows.embedded_server import DetachedServer, last_error
from rudalle_lib.errors import ConfigError
from tests.support.servers import free_ports

PATIENCE = 240.0
"""Seconds that a busy machine may need to start a server."""

SMALL_SERVER = """
import http.server, os, socket, sys, threading
if os.environ.get("BROKEN") == os.environ["PREFECT_HOME"]:
    raise RuntimeError("no database at postgresql://me:secret@localhost/x")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(os.getpid()).encode())
server = http.server.HTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
server.socket = socket.socket(fileno=int(sys.argv[1]))
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
"""
"""Starts at once, and otherwise behaves like `server_process.py`."""


@pytest.fixture
def small_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "small_server.py"
    script.write_text(SMALL_SERVER)
    monkeypatch.setattr(embedded_server, "SCRIPT", script)


Start = Callable[..., tuple[DetachedServer, list[str]]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a server with variables, waits for it, and returns it with what it reports."""
    started: list[DetachedServer] = []

    def start_server(**variables: str) -> tuple[DetachedServer, list[str]]:
        reports: list[str] = []
        environment = {n: v for n, v in os.environ.items() if not n.startswith("PREFECT_")}
        environment |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false"} | variables
        server = DetachedServer(0, environment, reports.append)
        started.append(server)
        server.wait_until_ready(PATIENCE)
        return server, reports

    yield start_server
    for server in started:
        server.kill()
        server.process.wait()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def get(port: int, path: str = "/api/health") -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as answer:
        content: bytes = answer.read()
        return content


def assert_no_site_reads_it(port: int) -> None:
    """A browser gives an answer to a page of another origin only if a header allows it."""
    headers = {"Origin": "https://evil.example"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/health", headers=headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        assert answer.headers["Access-Control-Allow-Origin"] is None


def test_its_warnings_are_no_errors_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.setenv("OTHER", "kept")
    environment = embedded_server._environment()
    assert "PYTHONWARNINGS" not in environment and environment["OTHER"] == "kept"


def test_a_process_with_another_server_does_not_import_it(tmp_path: Path) -> None:
    code = "import sys; from flows.embedded_server import use_detached_server; "
    code += "use_detached_server(); print('prefect.server' in sys.modules)"
    named = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **named}, cwd=PACKAGED.parent,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "False\n"


def test_signals_of_terminals_do_not_reach_it_and_it_stops_when_asked(
    start: Start, tmp_path: Path
) -> None:
    name = "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"
    origins = embedded_server._environment()[name]
    server, reports = start(PREFECT_HOME=str(tmp_path), **{name: origins})
    pid = server.process.pid
    assert_no_site_reads_it(server.port)
    assert os.getsid(pid) == os.getpgid(pid) == pid != os.getsid(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.killpg(pid, number)  # as systemd does: all processes of a service
    assert json.loads(get(server.port)) is True
    server.process.stop(30)
    assert server.process.returncode == 0
    assert [report for report in reports if not report.startswith("Waiting")] == []
    assert (tmp_path / "prefect.db").is_file()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_when_its_owner_is_gone(number: int, tmp_path: Path) -> None:
    code = """
    import os, time
    from flows.embedded_server import DetachedServer
    from flows import embedded_server
    server = DetachedServer(0, dict(os.environ), print)
    other = os.fork()  # also holds the pipe to the server open
    if other == 0:
        time.sleep(600)
    print(server.process.pid, other, flush=True)
    time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path)}
    owner = subprocess.Popen(command, env=environment, cwd=PACKAGED.parent, stdout=subprocess.PIPE)
    assert owner.stdout is not None
    server, other = map(int, owner.stdout.readline().split())
    try:
        time.sleep(1)
        owner.send_signal(number)  # also while the server is still starting
        owner.wait()
        wait_for(lambda: not is_alive(server))
    finally:
        os.kill(other, signal.SIGKILL)
        owner.stdout.close()


@pytest.mark.usefixtures("small_server")
def test_a_server_that_dies_is_started_again_and_requests_wait(start: Start) -> None:
    server, reports = start(PREFECT_HOME="somewhere")
    restarted: list[int] = []
    server.watch(lambda process: restarted.append(process.pid))
    for deaths in range(1, 3):
        os.kill(server.process.pid, signal.SIGKILL)
        wait_for(partial(lambda count: len(restarted) == count, deaths))
        assert int(get(server.port)) == restarted[-1]  # waits until the new process answers
    assert reports == 2 * [
        "Prefect's embedded server ended (killed by signal 9, perhaps because memory ran out); it "
        "is started again."
    ]


@pytest.mark.usefixtures("small_server")
def test_a_server_that_dies_again_and_again_is_given_up(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_server, "MAX_RESTARTS", 1)
    server, reports = start(PREFECT_HOME="somewhere")
    server.watch(lambda _: None)
    for _ in range(2):
        pid = server.process.pid
        os.kill(pid, signal.SIGKILL)
        wait_for(partial(lambda old: server.process.pid != old or len(reports) == 2, pid))
    wait_for(lambda: len(reports) == 2)
    assert reports[1].startswith("Prefect's embedded server ended 2 times (killed by signal 9")
    assert "Finished work is kept; run the same command again to continue." in reports[1]
    with pytest.raises(OSError):
        get(free_ports(1)[0])


@pytest.mark.usefixtures("small_server")
def test_stopping_it_is_not_a_death(start: Start) -> None:
    server, reports = start(PREFECT_HOME="somewhere")
    server.watch(lambda _: None)
    server.process.stop()
    time.sleep(0.3)
    assert reports == []


@pytest.mark.usefixtures("small_server")
def test_a_database_that_cannot_be_used_is_replaced_by_a_temporary_one(start: Start) -> None:
    server, reports = start(PREFECT_HOME="home", BROKEN="home")
    (report,) = reports
    assert "cannot use its database in home (RuntimeError: no database at postgresql://" in report
    assert "secret" not in report
    folder = Path(str(server._folder))
    assert folder.is_dir() and not folder.stat().st_mode & 0o077
    server.kill()
    assert not folder.exists()


@pytest.mark.usefixtures("small_server")
@pytest.mark.parametrize(
    "variables",
    [
        {"PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://me:secret@localhost/x"},
        {"PREFECT_SERVER_DATABASE_HOST": "localhost"},
    ],
)
def test_a_database_that_the_user_named_is_not_replaced(
    start: Start, variables: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match=r"did not start: RuntimeError: no database at") as raised:
        start(PREFECT_HOME="home", BROKEN="home", **variables)
    assert "secret" not in str(raised.value) and "PREFECT_API_URL" in str(raised.value)


@pytest.mark.usefixtures("small_server")
def test_waiting_for_long_is_reported_and_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(embedded_server, "SILENCE", 0.2)
    monkeypatch.setattr(embedded_server, "_answers", lambda _: False)
    reports: list[str] = []
    server = DetachedServer(0, {"PREFECT_HOME": str(tmp_path)}, reports.append)
    with pytest.raises(ConfigError, match="has not answered within 1 s; is this machine very busy"):
        server.wait_until_ready(1)
    assert reports == ["Waiting for Prefect's embedded server, for up to 1 s."]
    server.process.wait()


def of_another_version(home: Path) -> None:
    with sqlite3.connect(home / "prefect.db") as database:
        database.execute("create table alembic_version (version_num varchar(32) not null)")
        database.execute("insert into alembic_version values ('deadbeef1234')")
    database.close()


def garbage(home: Path) -> None:
    (home / "prefect.db").write_bytes(b"not a database" * 1000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(of_another_version, "Can't locate revision"), (garbage, "file is not a database")],
)
def test_prefects_own_errors_are_told_in_one_line(
    spoil: Callable[[Path], None], reason: str, start: Start, tmp_path: Path
) -> None:
    spoil(tmp_path)
    server, reports = start(
        PREFECT_HOME=str(tmp_path), PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL="ERROR"
    )
    assert json.loads(get(server.port)) is True
    told = [report for report in reports if not report.startswith("Waiting")]
    assert len(told) == 1 and reason in told[0] and "\n" not in told[0]


def test_the_last_error_of_a_log_is_shown_without_modules_and_secrets() -> None:
    log = """Traceback (most recent call last):
sqlalchemy.exc.OperationalError: (sqlite3.OperationalError) unable to open database file
(Background on this error at: https://sqlalche.me/e/21/e3q8)
During handling of the above exception, another exception occurred:
httpx.ConnectError: cannot reach http://me:secret@example.com/x?token=secret \x1b[31m
09:22:18.468 | ERROR   | uvicorn.error - Application startup failed. Exiting.
"""
    found = last_error(log)
    assert found is not None
    assert found.startswith("ConnectError: cannot reach http://example.com/x")
    assert "secret" not in found and "\x1b" not in found
    assert last_error("\n".join(log.splitlines()[:3])) == (
        "OperationalError: (OperationalError) unable to open database file"
    )
    assert last_error("nothing of interest") is None
