"""A run is paused for longer than its lease, another one finishes, then the first goes on.

Whatever the place, the dataset is that of the second run: byte-identical images, and no fault.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

import pytest

from rudalle_lib.dataset.manifests import read_run_manifest
from rudalle_lib.storage.storage import Storage
from tests.chaos.attempts import Attempt, assert_clean, images_of
from tests.chaos.conftest import OTHER, References, Site
from tests.chaos.disturbances import DISTURBANCE

pytestmark = pytest.mark.chaos

LEASE_SECONDS = 1.0

PLACES = 70
"""Changes that a run makes to a local output, at least."""


def test_a_run_that_is_paused_while_it_publishes_changes_nothing_afterwards(
    local_site: Site, references: References
) -> None:
    take_over(references, local_site, f"pause {PLACES // 2}")


@pytest.mark.slow
@pytest.mark.parametrize("place", random.Random(1).sample(range(1, PLACES), 20))
def test_a_paused_run_on_a_disk_changes_nothing_afterwards(
    local_site: Site, references: References, place: int
) -> None:
    take_over(references, local_site, f"pause {place}")


@pytest.mark.slow
@pytest.mark.parametrize("place", random.Random(2).sample(range(1, PLACES), 10))
def test_a_paused_run_leaves_a_finished_dataset_as_it_was(
    local_site: Site, references: References, place: int
) -> None:
    output = local_site.new_output()
    assert local_site.start(output).wait() is None
    take_over(references, local_site, f"pause {place}", output)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_run_on_s3_that_is_paused_at_a_random_moment_changes_nothing_afterwards(
    site: Site, references: References, seed: int
) -> None:
    take_over(references, site, random.Random(seed).uniform(0.0, 3.0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_the_same_on_a_server_that_cannot_lock(
    rclone_site: Site, references: References, seed: int
) -> None:
    take_over(references, rclone_site, random.Random(seed).uniform(0.0, 3.0))


def take_over(
    references: References, site: Site, pause: str | float, output: str | None = None
) -> None:
    """Pause a run with another seed, take its output over, and let it go on.

    Args:
        references: images of undisturbed runs.
        site: where the runs work.
        pause: a disturbance of the first run, or seconds after it has taken the lease.
        output: the output; a new one if None.
    """
    output = output or site.new_output()
    lease = {"runtime": {**site.settings["runtime"], "lease_seconds": LEASE_SECONDS}}
    first = pause_run(site, pause, output, {**OTHER, **lease})
    time.sleep(LEASE_SECONDS + 0.3)
    error = site.start(output, lease).wait()
    assert error is None, error
    assert_clean(output)
    assert images_of(output) == references.images
    if first.process.is_alive():
        first.resume()
    error = first.wait()
    assert_clean(output)
    if error is None:
        manifest = read_run_manifest(Storage(output))
        assert manifest is not None
        if manifest.config["seed"] == OTHER["seed"]:
            # It was paused before it knew that it had the lease, and took the next one.
            assert images_of(output) == references.other_images
            return
    assert error is None or "lease" in error or "it does not exist" in error, error
    assert images_of(output) == references.images


def pause_run(site: Site, pause: str | float, output: str, changes: Mapping[str, Any]) -> Attempt:
    """Start a run with changed settings, and pause it."""
    if isinstance(pause, str):
        first = site.start(output, changes, **{DISTURBANCE: pause})
        first.is_paused()
        return first
    first = site.start(output, changes)
    site.wait_for_lease(output, first)
    time.sleep(pause)
    if first.process.is_alive():
        first.pause()
        first.is_paused()
    return first
