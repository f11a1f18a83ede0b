"""Several runs write to one output, each to shards of its own, on a disk and on real S3 servers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rudalle_lib.dataset import lease as leases
from rudalle_lib.dataset.layout import ShardRange
from rudalle_lib.dataset.lease import HeldError, Holding, acquire, check, free, hold
from rudalle_lib.dataset.lease_files import PLAN, REPORT, RUN, Lease, list_leases, read_lease
from rudalle_lib.dataset.range_lease import check_planned, parse_shards, see_workers
from rudalle_lib.errors import ConfigError, LeaseError, LeaseLostError
from rudalle_lib.storage.probes import current_time
from rudalle_lib.storage.storage import Storage

ROOT = Path(__file__).parents[3]


class Clock:
    """The clock of the storage, which tests put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self, storage: Storage) -> float:
        return current_time(storage) + self.ahead


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which leases expire; storages that cannot lock settle at once here."""
    clock = Clock()
    monkeypatch.setattr(leases, "current_time", clock)
    monkeypatch.setattr("rudalle_lib.dataset.range_lease.current_time", clock)
    monkeypatch.setattr(leases, "SETTLING_SECONDS", 0.0)
    return clock


def take(
    storage: Storage, first: int, last: int, token: str = "token", settings: str = "same"
) -> Lease:
    """Take shards, as a run does."""
    with hold(storage, 60, purpose=PLAN) as planner:
        workers = see_workers(storage, planner)
        return workers.take(ShardRange(first, last), token, 60, settings)


@pytest.mark.parametrize(
    ("text", "shards"),
    [("0-99", ShardRange(0, 99)), (" 7 ", ShardRange(7, 7)), ("3-3", ShardRange(3, 3)),
     ("auto", None)],
)  # fmt: skip
def test_shards_are_a_number_two_or_auto(text: str, shards: ShardRange | None) -> None:
    assert parse_shards(text) == shards


@pytest.mark.parametrize(
    "text", ["", "9-3", "-1", "1-", "a-b", "1,2", "0-99-3", "٣", "1e3", "Auto"]
)
def test_other_shards_are_an_error_that_names_the_forms(text: str) -> None:
    with pytest.raises(ConfigError, match="such as 7, nor two .* such as 0-99, nor auto"):
        parse_shards(text)


@pytest.mark.parametrize(
    ("shards", "count", "message"),
    [
        (ShardRange(3, 3), 3, "There is no shard 3: the plan has shards 0-2, counted from 0."),
        (ShardRange(3, 9), 1, "There are no shards 3-9: the plan has shard 0, counted from 0."),
        (ShardRange(0, 9), 0, "There are no shards 0-9: the plan has no shards."),
        (ShardRange(2, 9), 3, None),
        (None, 0, None),
    ],
)
def test_shards_beyond_the_plan_are_an_error(
    shards: ShardRange | None, count: int, message: str | None
) -> None:
    if message is None:
        check_planned(shards, count)
        return
    with pytest.raises(ConfigError) as raised:
        check_planned(shards, count)
    assert str(raised.value) == message


def test_shards_that_overlap_are_an_error_that_names_holder_and_shards(storage: Storage) -> None:
    take(storage, 0, 99)
    for first, last in ((50, 149), (0, 0), (99, 99), (0, 1000)):
        with pytest.raises(HeldError, match=r"overlap.*works on shards 0-99 of .*process \d+"):
            take(storage, first, last)
    other = take(storage, 100, 149)
    check(storage, other.mark)
    assert [str(shards) for _, shards in list_leases(storage).ranges] == ["0-99", "100-149"]


def test_a_whole_run_and_runs_of_shards_exclude_each_other(storage: Storage) -> None:
    lease = take(storage, 0, 9)
    for purpose in (RUN, REPORT):
        with pytest.raises(HeldError, match="works on shards 0-9 of"):
            acquire(storage, 60, purpose=purpose)
    free(storage, "token")
    with pytest.raises(LeaseLostError, match="lease of shards 0-9 of .*, nobody does"):
        check(storage, lease.mark)
    with hold(storage, 60), pytest.raises(HeldError, match="Another run writes to"):
        take(storage, 0, 9)
    assert take(storage, 0, 9).number == lease.number + 1


def test_a_whole_run_ends_all_leases_of_shards(storage: Storage, clock: Clock) -> None:
    expired, freed = take(storage, 0, 9), take(storage, 10, 19, "another")
    free(storage, "another")
    clock.ahead += 100
    with hold(storage, 60) as run:
        assert run.mark.term == 1  # the first may still be alive
        assert list_leases(storage).ranges == []
    storage.write_bytes(expired.path, expired.to_json())  # it renews its lease once more
    for lease in (expired, freed):
        with pytest.raises(LeaseLostError):
            check(storage, lease.mark)
    again = take(storage, 0, 9)
    assert again.number > freed.number and again.term == 1


def test_shards_of_a_stalled_run_are_taken_over_with_a_higher_term(
    storage: Storage, clock: Clock
) -> None:
    first = take(storage, 0, 9)
    clock.ahead += 100
    beside = take(storage, 10, 19, "beside")
    second = take(storage, 5, 9, "second")
    assert (first.term, beside.term, second.term) == (0, 0, 1)
    with pytest.raises(LeaseLostError, match="shards 0-9 of .*process"):
        check(storage, first.mark)
    storage.write_bytes(first.path, first.to_json())  # as a run that was paused while it renewed
    free(storage, "second")
    with pytest.raises(LeaseLostError):
        Holding(storage, first).renew()
    third = take(storage, 0, 9, "third")
    assert third.term == 1
    check(storage, third.mark)
    check(storage, beside.mark)
    with pytest.raises(LeaseLostError):
        check(storage, first.mark)


def test_leases_of_finished_shards_are_deleted_and_their_terms_kept(
    storage: Storage, clock: Clock
) -> None:
    take(storage, 0, 9)
    clock.ahead += 100
    with hold(storage, 60):  # term 1
        pass
    for number in range(3):
        lease = take(storage, 10 * number, 10 * number + 9, "next")
        assert lease.term == 1
        free(storage, "next")
    assert len(list_leases(storage).ranges) == 1


def test_runs_with_other_settings_do_not_share_an_output(storage: Storage) -> None:
    take(storage, 0, 9, "first", settings="seed 1")
    with pytest.raises(HeldError, match="with other settings or weights.* the same configuration"):
        take(storage, 10, 19, "second", settings="seed 2")
    free(storage, "first")
    take(storage, 10, 19, "second", settings="seed 2")


def test_a_run_that_stalled_while_it_planned_takes_no_shards(
    storage: Storage, clock: Clock
) -> None:
    with hold(storage, 60, purpose=PLAN) as planner:
        workers = see_workers(storage, planner)
        clock.ahead += 100
        second = take(storage, 0, 9, "second")
        with pytest.raises(LeaseLostError):
            workers.take(ShardRange(5, 14), "first", 60, "same")
    check(storage, second.mark)
    third = take(storage, 10, 19, "third")  # what the first has left there is free
    check(storage, third.mark)


def test_who_plans_waits_while_another_run_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    first = acquire(storage, 60, purpose=PLAN, token="first")
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        free(storage, "first")

    monkeypatch.setattr("rudalle_lib.dataset.lease.time.sleep", wait)
    with hold(storage, 60, purpose=PLAN) as second:
        assert second.mark.number == first.number + 1
    assert waited == [leases.WAIT_SECONDS]


def test_shards_of_a_killed_run_on_this_machine_are_free_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from tests.lib.dataset.test_range_lease import take; "
        "from rudalle_lib.storage.storage import Storage; "
        "take(Storage(sys.argv[1]), 0, 9); print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    storage = Storage(str(tmp_path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(LeaseError, match=f"process {other.pid}"):
            take(storage, 0, 9)
        other.kill()
    lease = take(storage, 0, 9)
    assert (lease.number, lease.term) == (2, 0)  # it surely writes no more
    assert [number for number, _ in list_leases(storage).ranges] == [2]


def test_a_lease_of_shards_is_renewed_like_any_other(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    holding = Holding(storage, take(storage, 0, 9))
    before = holding.lease.renewed
    holding.renew()
    assert holding.lease.renewed > before
    assert read_lease(storage) != holding.lease
    storage.write_bytes(holding.lease.path, replace(holding.lease, token="other").to_json())
    with pytest.raises(LeaseLostError):
        holding.renew()
