"""Signals as terminals, systemd and containers send them: to the whole process group.

Whatever a command is doing, it ends within `LIMIT`, with the exit code of the signal, one sentence
and nothing left running.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.cli.options import PACKAGED
from flows.watchdog import ENDINGS, GRACE
from rudalle_lib.dataset.lease import is_over
from rudalle_lib.dataset.lease_files import read_lease
from rudalle_lib.storage.storage import Storage
from tests.support.prefect_home import make_prefect_home
from tests.support.servers import free_ports
from tests.support.tiny_run import LONG_TABLE

pytestmark = pytest.mark.chaos

LONG = pytest.mark.slow
INT, TERM, HUP, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL

LIMIT = GRACE + 3.0
"""Seconds within which a command ends after a signal; a busy test machine may need more."""

AT_ONCE = 6.0
"""Seconds within which it ends after the second signal, on a busy machine."""

START_UP = 400.0
"""Seconds that a command may need to start on a busy machine."""


class Command:
    """A command in a session of its own, and what it printed."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        environment = {n: v for n, v in os.environ.items() if not n.startswith("PREFECT_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *arguments],
            cwd=PACKAGED.parent,
            env=environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for(self, pattern: str) -> None:
        """Wait until a line matches a pattern, or, for a number, so many seconds."""
        if re.fullmatch(r"[\d.]+", pattern):
            time.sleep(float(pattern))
            return
        deadline = time.monotonic() + START_UP
        while not any(re.search(pattern, line) for line in self.lines):
            assert self.process.poll() is None and time.monotonic() < deadline, self.lines
            time.sleep(0.05)

    def send(self, number: int) -> None:
        """Signal the group, if it is still there."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def end(self, seconds: float) -> int:
        """Wait for the end; returns the exit code."""
        try:
            return self.process.wait(seconds)
        finally:
            self.close()

    def close(self) -> None:
        """Kill what is left."""
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def servers(self) -> list[int]:
        """The embedded servers of this command."""
        return [pid for pid, parent in server_processes() if parent == self.process.pid]

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self.lines.append(line)


def server_processes() -> list[tuple[int, int]]:
    """All embedded servers of this machine, each with its parent."""
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError, IndexError):
            if b"server_process.py" in (folder / "cmdline").read_bytes():
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                found.append((int(folder.name), int(parent)))
    return found


@pytest.fixture
def site(settings: dict[str, Any], tmp_path: Path) -> Iterator[Path]:
    """A folder with `run.yaml`, a run of many seconds; no server of it may be left."""
    make_prefect_home(tmp_path / "prefect")
    (tmp_path / "prompts.csv").write_text(LONG_TABLE, encoding="utf-8")
    config = {
        **settings,
        "output": str(tmp_path / "out"),
        "prompts": {"uri": str(tmp_path / "prompts.csv"), "shard_size": 1},
        "generate": {"images": 4, "batch_size": 1},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    before = {pid for pid, _ in server_processes()}
    yield tmp_path
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        left = [pid for pid, parent in server_processes() if pid not in before and parent == 1]
        if not left:
            return
        time.sleep(0.2)
    assert left == []


def run(site: Path, *arguments: str) -> Command:
    return Command("run", str(site / "run.yaml"), *arguments, PREFECT_HOME=str(site / "prefect"))


def assert_ended(command: Command, number: int, seconds: float) -> None:
    """Assert that the command ends in time, with one sentence and nothing left."""
    code = command.end(seconds)
    ending = ENDINGS[signal.Signals(number)]
    text = "".join(command.lines)
    assert code == ending.code, text
    assert text.count(f"rudalle-flows: {ending.message}") == 1, text
    assert "Traceback" not in text and "Exception" not in text, text
    with pytest.raises(ProcessLookupError):
        os.killpg(command.process.pid, 0)  # nobody of the group is left


MOMENTS = {
    "importing": "0.15",
    "checking": "1.5",
    "starting the server": "4",
    "planning and drawing": "shards to do",
    "publishing": "shard 0000[0-9]: ",
}
"""Moments of a run: seconds after its start, or a line that it prints."""


ENOUGH = {("planning and drawing", INT), ("publishing", TERM)}
"""Of the late moments, the cases that show each signal and each moment; others are slow tests."""


def cases() -> list[Any]:
    """Every moment with every signal."""
    found = []
    for moment in MOMENTS:
        for number in (INT, TERM, HUP):
            late = moment in {named for named, _ in ENOUGH}
            is_long = (moment, number) not in ENOUGH if late else number == HUP
            marks = LONG if is_long else ()
            found.append(pytest.param(moment, number, marks=marks, id=f"{moment}-{number.name}"))
    return found


@pytest.mark.parametrize(("moment", "number"), cases())
def test_one_signal_ends_a_run(moment: str, number: int, site: Path) -> None:
    command = run(site)
    command.wait_for(MOMENTS[moment])
    command.send(number)
    assert_ended(command, number, LIMIT)
    lease = read_lease(Storage(str(site / "out")))
    assert lease is None or is_over(lease)


@pytest.mark.parametrize(
    ("moment", "numbers"),
    [
        ("checking", (TERM, TERM)),
        ("planning and drawing", (INT, INT)),
        pytest.param("checking", (INT, INT), marks=LONG),
        pytest.param("checking", (INT, TERM), marks=LONG),
        pytest.param("planning and drawing", (TERM, TERM), marks=LONG),
        pytest.param("planning and drawing", (INT, TERM), marks=LONG),
    ],
)
def test_a_second_signal_ends_a_run_at_once(
    moment: str, numbers: tuple[int, int], site: Path
) -> None:
    command = run(site)
    command.wait_for(MOMENTS[moment])
    for number in numbers:
        command.send(number)
        time.sleep(0.7)
    assert_ended(command, numbers[0], AT_ONCE)


def test_a_run_survives_the_death_of_its_server(site: Path) -> None:
    (site / "prompts.csv").write_text(LONG_TABLE.replace(",100", ",10"), encoding="utf-8")
    command = run(site)
    command.wait_for("shards to do")
    (server,) = command.servers()
    os.kill(server, KILL)  # like the kernel when memory runs out
    assert command.end(START_UP) == 0, command.lines
    text = "".join(command.lines)
    assert text.count("server ended (killed by signal 9, perhaps because memory ran out)") == 1
    assert "of 60 images published" in text
    assert len(list((site / "out" / "shards").glob("*.json"))) == 6


def test_a_signal_ends_a_run_whose_server_has_just_died(site: Path) -> None:
    command = run(site)
    command.wait_for("shards to do")
    (server,) = command.servers()
    os.kill(server, KILL)
    time.sleep(0.5)
    command.send(TERM)
    assert_ended(command, TERM, LIMIT)


def test_a_server_that_dies_again_and_again_ends_the_run(site: Path) -> None:
    command = run(site)
    command.wait_for("shards to do")
    while command.process.poll() is None:
        for server in command.servers():
            os.kill(server, KILL)
        time.sleep(0.1)
    assert command.end(LIMIT) == 1
    text = "".join(command.lines)
    assert text.count("rudalle-flows: Prefect's embedded server ended 4 times") == 1
    assert "Traceback" not in text


@pytest.mark.parametrize(
    "moment", [pytest.param("starting the server", marks=LONG), "planning and drawing"]
)
def test_a_killed_run_leaves_no_server(moment: str, site: Path) -> None:
    command = run(site)
    command.wait_for(MOMENTS[moment])
    servers = command.servers()
    os.kill(command.process.pid, KILL)
    command.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and {pid for pid, _ in server_processes()} & set(servers):
        time.sleep(0.1)
    assert not {pid for pid, _ in server_processes()} & set(servers)


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("2", TERM),
        ("Try prompts at", INT),
        pytest.param("2", INT, marks=LONG),
        pytest.param("Try prompts at", TERM, marks=LONG),
    ],
)
def test_a_signal_ends_the_page_to_try_prompts(moment: str, number: int, site: Path) -> None:
    if find_spec("gradio") is None:
        pytest.skip("gradio is not installed")
    (port,) = free_ports(1)
    command = Command("app", str(site / "run.yaml"), "--port", str(port))
    command.wait_for(moment)
    time.sleep(1)
    command.send(number)
    assert_ended(command, number, LIMIT)


@pytest.mark.parametrize("arguments", [
    ("plan", "--prompts", "large.csv"),
    ("preview", "-n", "3", "--to", "sheet.png"),
])  # fmt: skip
def test_a_signal_ends_other_commands(arguments: tuple[str, ...], site: Path) -> None:
    rows = (f"красный круг {number}\n" for number in range(200_000))  # seconds of planning
    (site / "large.csv").write_text("prompt\n" + "".join(rows))
    name, *rest = (str(site / a) if Path(a).suffix else a for a in arguments)
    command = Command(name, str(site / "run.yaml"), *rest, PREFECT_HOME=str(site / "prefect"))
    time.sleep(1.2)
    command.send(TERM)
    assert_ended(command, TERM, LIMIT)


def test_a_table_that_is_a_pipe_ends_a_run_at_once(site: Path) -> None:
    os.mkfifo(site / "fifo.csv")  # nobody writes there
    command = Command("run", str(site / "run.yaml"), "--prompts", str(site / "fifo.csv"))
    assert command.end(LIMIT) == 2, command.lines
    assert "it is a named pipe" in "".join(command.lines)


def test_a_silent_s3_server_does_not_keep_a_run_from_ending(site: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        variables = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "value",
        }
        command = Command("run", str(site / "run.yaml"), "--output", "s3://bucket/x", **variables)
        silent.settimeout(START_UP)
        connection, _ = silent.accept()
        with connection:
            time.sleep(0.5)
            command.send(TERM)
        assert_ended(command, TERM, LIMIT)


@pytest.mark.parametrize("number", [INT, TERM])
def test_serving_ends_its_run_before_itself(number: int, site: Path, prefect_server: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.deployments import run_deployment
    from prefect.settings import PREFECT_API_URL, temporary_settings

    config = yaml.safe_load((site / "run.yaml").read_text()) | {"name": f"signal-{number:d}"}
    (site / "run.yaml").write_text(yaml.safe_dump(config))
    variables = {"PREFECT_API_URL": prefect_server, "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    command = Command("serve", str(site / "run.yaml"), **variables)
    try:
        command.wait_for("Serving")
        with temporary_settings({PREFECT_API_URL: prefect_server}):
            name = f"generate-dataset/{config['name']}"
            with get_client(sync_client=True) as client:
                deadline = time.monotonic() + START_UP
                while time.monotonic() < deadline:
                    with suppress(Exception):  # not registered yet
                        client.read_deployment_by_name(name)
                        break
                    time.sleep(0.5)
                started: Any = run_deployment(name, timeout=0)
                while not list((site / "out").glob("stages/*/*")):
                    assert command.process.poll() is None and time.monotonic() < deadline
                    time.sleep(0.2)
                command.send(number)
                assert_ended(command, number, LIMIT)
                state = client.read_flow_run(started.id).state
        assert state is not None and state.is_crashed(), state  # not Running for ever
        lease = read_lease(Storage(str(site / "out")))
        assert lease is not None and lease.free
    finally:
        command.close()
