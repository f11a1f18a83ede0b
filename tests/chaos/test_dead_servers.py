"""Servers that die in the middle of a run: S3 comes back with its files, Prefect knows nothing."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.chaos.attempts import assert_nothing_twice, assert_same, state_of
from tests.chaos.conftest import Site, Undisturbed
from tests.chaos.fault_proxy import Fault, Request

pytestmark = pytest.mark.chaos

LONG = pytest.mark.slow


def at_request(site: Site, moment: int, action: Callable[[], None]) -> None:
    """Do something, once, when a request of this number (from now on) comes."""
    moment += len(site.proxy.requests)
    done = threading.Event()

    def decide(request: Request) -> Fault | None:
        if request.number < moment or done.is_set():
            return None
        done.set()
        return Fault("unheard", then=action)

    site.proxy.decide = decide


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=LONG) for n in range(1, 5))])
def test_the_object_store_is_killed_and_comes_back(
    site: Site, undisturbed: Undisturbed, seed: int
) -> None:
    moment = random.Random(seed).randint(undisturbed.requests // 5, undisturbed.requests * 4 // 5)
    back = threading.Event()

    def come_back() -> None:
        site.server.restart(240)
        back.set()

    def die() -> None:
        site.server.kill()
        threading.Thread(target=come_back).start()

    at_request(site, moment, die)
    output, errors = site.new_output(), 0
    while (error := site.start(output).wait(600)) is not None:
        # A server that is away for longer than all tries is an error in one sentence, no more.
        errors += 1
        assert errors < 5 and ("does not answer" in error or "breaks connections" in error), error
        assert back.wait(300)
    assert back.wait(300)
    assert_same(state_of(output), undisturbed.state)
    assert_nothing_twice(output)


@contextmanager
def prefect_server(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A Prefect server with its database in a folder, and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port"]
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment |= {"PREFECT_HOME": str(folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    with (folder / "said.txt").open("wb") as said:
        process = subprocess.Popen(
            [*command, port], env=environment, stdout=said, stderr=said, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}/api"
        wait_for(address, process, folder)
        yield address, process
    finally:
        kill_group(process)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a server with all of its own processes, if it still runs."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(address: str, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + 240
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            said = (folder / "said.txt").read_text(errors="replace")[-2000:]
            assert process.poll() is None and time.monotonic() < deadline, said
            time.sleep(0.2)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=LONG), pytest.param(2, marks=LONG)])
def test_prefect_is_killed_and_its_database_deleted(
    site: Site, undisturbed: Undisturbed, tmp_path: Path, seed: int
) -> None:
    moment = random.Random(seed).randint(undisturbed.requests // 4, undisturbed.requests // 2)
    home = tmp_path / "prefect"
    home.mkdir()
    output, api, dead = site.new_output(), site.api, threading.Event()
    with prefect_server(home) as (address, process):

        def die() -> None:
            kill_group(process)
            dead.set()

        site.api = address
        at_request(site, moment, die)
        attempt = site.start(output)
        assert dead.wait(300), attempt.output()
        attempt.process.join(15)
        if attempt.process.is_alive():  # it would go on asking for its server
            attempt.kill()
            attempt.process.join()
    shutil.rmtree(home)

    site.api = api  # another server, which has never heard of the run
    assert site.start(output).wait(600) is None
    assert_same(state_of(output), undisturbed.state)
    assert_nothing_twice(output)
