"""Servers that die in the middle of a run: S3 comes back with its files, Prefect knows nothing."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.attempts import assert_nothing_twice, assert_same, state_of
from tests.chaos.conftest import Site, Undisturbed
from tests.chaos.fault_proxy import Fault, Request
from tests.servers import kill_group, prefect_server

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
