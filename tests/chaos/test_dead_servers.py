"""Servers that die during a run: S3 comes back with its files, Prefect with an empty database."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.attempts import assert_nothing_twice, assert_same, state_of
from tests.chaos.conftest import S3Site, Undisturbed
from tests.chaos.fault_proxy import Fault, Request
from tests.support.prefect_home import make_prefect_home
from tests.support.servers import kill_group, prefect_server

pytestmark = pytest.mark.chaos

LONG = pytest.mark.slow


def at_request(site: S3Site, number: int, action: Callable[[], None]) -> None:
    """Call `action` once, at the `number`-th request from now on."""
    number += len(site.proxy.requests)
    done = threading.Event()

    def decide(request: Request) -> Fault | None:
        if request.number < number or done.is_set():
            return None
        done.set()
        return Fault("no response", then=action)

    site.proxy.decide = decide


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=LONG) for n in range(1, 5))])
def test_a_run_survives_a_restart_of_the_object_store(
    site: S3Site, undisturbed: Undisturbed, seed: int
) -> None:
    number = random.Random(seed).randint(undisturbed.requests // 5, undisturbed.requests * 4 // 5)
    restarted = threading.Event()

    def restart() -> None:
        site.server.restart(240)
        restarted.set()

    def die() -> None:
        site.server.kill()
        threading.Thread(target=restart).start()

    at_request(site, number, die)
    output, errors = site.new_output(), 0
    while (error := site.start(output).wait(600)) is not None:
        # If the server is down for longer than all retries, the run ends with a clear error.
        errors += 1
        assert errors < 5 and ("does not answer" in error or "breaks connections" in error), error
        assert restarted.wait(300)
    assert restarted.wait(300)
    assert_same(state_of(output), undisturbed.state)
    assert_nothing_twice(output)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=LONG), pytest.param(2, marks=LONG)])
def test_a_run_can_be_resumed_after_prefect_lost_its_database(
    site: S3Site, undisturbed: Undisturbed, tmp_path: Path, seed: int
) -> None:
    number = random.Random(seed).randint(undisturbed.requests // 4, undisturbed.requests // 2)
    home = make_prefect_home(tmp_path / "prefect")
    output, api, dead = site.new_output(), site.api, threading.Event()
    with prefect_server(home) as (address, process):

        def die() -> None:
            kill_group(process)
            dead.set()

        site.api = address
        at_request(site, number, die)
        attempt = site.start(output)
        assert dead.wait(300), attempt.output()
        attempt.process.join(5)
        if attempt.process.is_alive():  # it would retry for a long time
            attempt.kill()
            attempt.process.join()
    shutil.rmtree(home)

    site.api = api  # another server, which does not know the run
    assert site.start(output).wait(600) is None
    assert_same(state_of(output), undisturbed.state)
    assert_nothing_twice(output)
