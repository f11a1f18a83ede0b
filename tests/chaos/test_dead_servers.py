"""A server that dies in the middle of a run and comes back: nothing is lost, nothing twice."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

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
