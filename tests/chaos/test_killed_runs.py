"""Runs on a disk that are killed, or lose what was not flushed in a power cut, and are resumed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.attempts import assert_clean, images_of
from tests.chaos.conftest import References, Site
from tests.chaos.disturbances import DISTURBANCE, FLUSHED

pytestmark = pytest.mark.chaos

CHANGES = 70
"""Changes that a run makes to a local output, about."""


@pytest.mark.parametrize("kills", [1, pytest.param(100, marks=pytest.mark.slow)])
def test_a_run_on_a_disk_that_is_killed_at_random_changes_can_be_resumed(
    local_site: Site, references: References, kills: int
) -> None:
    dice, done = random.Random(kills), 0
    while done < kills:
        output, killed = local_site.new_output(), True
        while killed:
            kill = {DISTURBANCE: f"kill {dice.randint(1, CHANGES)}"} if done < kills else {}
            attempt = local_site.start(output, **kill)
            attempt.killed = bool(kill)  # it kills itself
            error = attempt.wait()
            killed = error == "killed"
            done += killed
        assert error is None
        assert_clean(output)
        assert images_of(output) == references.images


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.5], ids=["emptied", "cut in half"])
@pytest.mark.parametrize("change", [*random.Random(3).sample(range(4, CHANGES), 9), 1000])
def test_what_a_power_cut_leaves_can_be_resumed(
    local_site: Site,
    references: References,
    tmp_path: Path,
    change: int,
    share: float,
) -> None:
    output, journal = local_site.new_output(), tmp_path / "journal"
    journal.touch()
    disturbance = f"journal {journal};kill {change}"
    attempt = local_site.start(output, **{DISTURBANCE: disturbance})
    attempt.killed = True
    attempt.wait()
    cut_power(journal, share)
    error = local_site.start(output).wait()
    assert error is None, error
    assert_clean(output)
    assert images_of(output) == references.images


def cut_power(journal: Path, share: float) -> None:
    """Cut off all files that were written after the last flush."""
    lines = journal.read_text().splitlines()
    flushed = max((i for i, line in enumerate(lines) if line == FLUSHED), default=-1)
    lost = [Path(line) for line in dict.fromkeys(lines[flushed + 1 :]) if Path(line).exists()]
    for path in lost:
        with path.open("r+b") as file:
            file.truncate(int(path.stat().st_size * share))
