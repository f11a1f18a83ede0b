"""Whatever interrupts a run, what is left in the end is the dataset that nothing interrupted."""

from __future__ import annotations

import random

import pytest

from tests.chaos.attempts import assert_nothing_twice, assert_same, state_of
from tests.chaos.conftest import Site, Undisturbed
from tests.chaos.fault_proxy import KINDS, Fault, Request

pytestmark = pytest.mark.chaos

LONG = pytest.mark.slow


def kill_at_random(site: Site, dice: random.Random, requests: int) -> None:
    """Kill the next run at one of its requests: before it, in its middle or after it was obeyed."""
    moment = len(site.proxy.requests) + dice.randint(1, requests)
    kind = dice.choice(("reset", "torn", "unheard"))

    def decide(request: Request) -> Fault | None:
        return Fault(kind, then=site.attempts[-1].kill) if request.number >= moment else None

    site.proxy.decide = decide


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=LONG)])
def test_killed_at_random_moments_and_resumed_until_done(
    site: Site, undisturbed: Undisturbed, kills: int
) -> None:
    dice, done = random.Random(kills), 0
    while done < kills:
        output = site.new_output()
        kill_at_random(site, dice, undisturbed.requests)
        while (error := site.start(output).wait()) == "killed":
            done += 1
            site.proxy.decide = lambda _: None
            if done < kills:
                kill_at_random(site, dice, undisturbed.requests)
        assert error is None
        assert_same(state_of(output), undisturbed.state)
        assert_nothing_twice(output)


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=LONG) for n in range(1, 10))])
def test_a_tenth_of_all_requests_fails(site: Site, undisturbed: Undisturbed, seed: int) -> None:
    dice = random.Random(seed)

    def decide(_: Request) -> Fault | None:
        return Fault(dice.choice(KINDS)) if dice.random() < 0.1 else None

    site.proxy.decide = decide
    output = site.new_output()
    error = site.start(output).wait()
    site.proxy.decide = lambda _: None
    assert error is None
    assert len(site.proxy.faults) >= 10
    assert_same(state_of(output), undisturbed.state)
    assert_nothing_twice(output)
