"""Interrupted and resumed runs end with the same dataset as an undisturbed one."""

from __future__ import annotations

import random

import pytest

from tests.chaos.attempts import assert_nothing_twice, assert_same, state_of
from tests.chaos.conftest import S3Site, Undisturbed
from tests.chaos.fault_proxy import KINDS, Fault, Kind, Request

pytestmark = pytest.mark.chaos

LONG = pytest.mark.slow


def kill_at_random(site: S3Site, dice: random.Random, requests: int) -> None:
    """Kill the next run at one of its requests: before, during or after its processing."""
    number = len(site.proxy.requests) + dice.randint(1, requests)
    kind: Kind = dice.choice(("reset", "half request", "no response"))

    def decide(request: Request) -> Fault | None:
        return Fault(kind, then=site.attempts[-1].kill) if request.number >= number else None

    site.proxy.decide = decide


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=LONG)])
def test_a_run_that_is_killed_at_random_requests_can_be_resumed(
    site: S3Site, undisturbed: Undisturbed, kills: int
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
def test_a_run_survives_faults_in_a_tenth_of_its_requests(
    site: S3Site, undisturbed: Undisturbed, seed: int
) -> None:
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
