"""Machines that share an output are killed and paused: the dataset is that of one run."""

from __future__ import annotations

import random
import time

import pytest

from rudalle_lib.dataset.lease_files import list_leases
from rudalle_lib.storage.storage import Storage
from tests.chaos.attempts import SHARDS, Attempt, assert_clean, assert_nothing_twice, images_of
from tests.chaos.conftest import OTHER, References, Site
from tests.chaos.disturbances import DISTURBANCE

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

LEASE_SECONDS = 1.0


def wait_for_shards(output: str, attempt: Attempt) -> None:
    """Wait until somebody has taken shards, or a run has ended."""
    while attempt.process.is_alive() and not list_leases(Storage(output)).ranges:
        time.sleep(0.02)


@pytest.mark.parametrize("place", ["local_site", "site"])
def test_a_killed_machine_is_taken_over_by_the_others(
    place: str, references: References, request: pytest.FixtureRequest
) -> None:
    site: Site = request.getfixturevalue(place)
    output = site.new_output()
    on_disk = {DISTURBANCE: "kill 30"} if site.server is None else {}
    lost = site.start(output, **{SHARDS: "0-1"}, **on_disk)
    wait_for_shards(output, lost)
    lost.killed = True  # it kills itself
    if not on_disk:
        lost.kill()
    others = [site.start(output, **{SHARDS: "auto"}) for _ in range(2)]
    assert lost.wait() == "killed"
    assert [other.wait() for other in others] == [None, None]
    assert images_of(output) == references.images
    assert_nothing_twice(output)


@pytest.mark.parametrize("place", random.Random(3).sample(range(1, 60), 12))
def test_a_machine_that_was_paused_changes_nothing_afterwards(
    local_site: Site, references: References, place: int
) -> None:
    output = local_site.new_output()
    lease = {"runtime": {**local_site.settings["runtime"], "lease_seconds": LEASE_SECONDS}}
    pause = {SHARDS: "0-9", DISTURBANCE: f"pause {place}"}
    first = local_site.start(output, {**OTHER, **lease}, **pause)
    first.is_paused()
    time.sleep(LEASE_SECONDS + 0.3)
    others = [local_site.start(output, lease, **{SHARDS: "auto"}) for _ in range(2)]
    assert [other.wait() for other in others] == [None, None]
    assert_clean(output)
    assert images_of(output) == references.images
    if first.process.is_alive():
        first.resume()
    error = first.wait()
    assert error is None or "lease" in error or "it does not exist" in error, error
    assert_clean(output)
    assert images_of(output) == references.images
