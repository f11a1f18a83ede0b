"""One run at a time writes to an output, on a disk and on a real S3 server alike."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from rudalle_lib import lease as leases
from rudalle_lib.errors import LeaseError, LeaseLostError
from rudalle_lib.lease import Holding, acquire, check, describe, hold, read_lease
from rudalle_lib.storage import Storage


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_of_many_that_create_a_file_at_once_one_succeeds(storage: Storage) -> None:
    contents = [f"number {number}".encode() for number in range(12)]
    start = threading.Barrier(len(contents))

    def create(content: bytes) -> bool:
        start.wait()
        return storage.create("a/b.json", content)

    with ThreadPoolExecutor(len(contents)) as pool:
        made = list(pool.map(create, contents))
    assert made.count(True) == 1
    assert storage.read_bytes("a/b.json") == contents[made.index(True)]
    assert not storage.create("a/b.json", b"later")
    assert storage.list() == ["a/b.json"]


def test_of_many_runs_at_once_one_gets_the_lease(storage: Storage) -> None:
    start = threading.Barrier(6)

    def take(_: int) -> leases.Lease | LeaseError:
        start.wait()
        try:
            return acquire(storage, 60)
        except LeaseError as error:
            return error

    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(take, range(6)))
    (winner,) = [lease for lease in got if isinstance(lease, leases.Lease)]
    assert read_lease(storage) == winner
    assert storage.list("lease") == ["lease/00001.json"]


def test_a_lease_created_while_another_run_looks_is_not_overtaken(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = leases._newest
    early: list[leases.Lease] = []

    def judge_too_early(storage: Storage, numbers: Sequence[int]) -> leases.Lease | None:
        found = judged(storage, numbers)
        if not early:
            monkeypatch.setattr(leases, "_newest", judged)
            early.append(acquire(storage, 60))  # somebody else, between the look and the creation
        return found

    monkeypatch.setattr(leases, "_newest", judge_too_early)
    with pytest.raises(LeaseError):
        acquire(storage, 60)
    assert read_lease(storage) == early[0]


def test_the_second_is_refused_with_holder_and_age(storage: Storage) -> None:
    clock = Clock()
    with hold(storage, 120, clock):
        clock.now += 75
        with pytest.raises(LeaseError) as refused, hold(storage, 120, clock):
            raise AssertionError("two runs hold the lease")
        message = str(refused.value)
        for part in (
            storage.public_path(),
            "process ",
            "for 1 min 15 s",
            "last sign of life",
            "120",
        ):
            assert part in message
    with hold(storage, 120, clock) as second:
        assert second.number == 2


def test_it_is_freed_at_the_end_and_on_failure(storage: Storage) -> None:
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), hold(storage, 120):
            raise error
    lease = read_lease(storage)
    assert lease is not None and lease.free and lease.number == 3
    assert storage.list("lease") == ["lease/00003.json"]


def test_a_stale_one_is_taken_over_and_its_holder_notices(storage: Storage) -> None:
    clock = Clock()
    first = Holding(storage, acquire(storage, 60, clock), clock)
    clock.now += 59
    with pytest.raises(LeaseError, match="last sign of life 59 s ago"):
        acquire(storage, 60, clock)
    first.renew()
    clock.now += 60
    with pytest.raises(LeaseError):
        acquire(storage, 60, clock)
    clock.now += 1
    second = Holding(storage, acquire(storage, 60, clock), clock)
    for attempt in (first.renew, first.free, lambda: check(storage, first.number)):
        with pytest.raises(LeaseLostError, match="no longer holds the lease"):
            attempt()
    second.renew()
    check(storage, second.number)
    second.free()
    with pytest.raises(LeaseLostError, match="nobody does"):
        check(storage, second.number)


def test_renewing_goes_on_in_the_background_until_the_lease_is_lost(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with hold(storage, 0.4) as holding:
        before = holding.lease.renewed
        time.sleep(1)  # longer than the lease
        assert holding.lost is None and holding.lease.renewed > before + 0.4
        with pytest.raises(LeaseError):
            acquire(storage, 60)
        other = replace(holding.lease, number=2, token="t", holder="another")
        storage.write_bytes("lease/00002.json", leases._json(other))
        deadline = time.monotonic() + 10
        while holding.lost is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert holding.lost is not None and "another does" in holding.lost
    assert read_lease(storage) == other  # not freed by who does not hold it


def test_a_killed_run_on_this_machine_is_followed_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from rudalle_lib.lease import acquire; "
        "from rudalle_lib.storage import Storage; "
        "acquire(Storage(sys.argv[1]), 3600); print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(LeaseError, match=f"process {other.pid}"):
            acquire(Storage(str(tmp_path)), 60)
        other.kill()
    assert acquire(Storage(str(tmp_path)), 60).number == 2


def test_a_process_elsewhere_is_never_taken_for_gone(tmp_path: Path) -> None:
    storage, clock = Storage(str(tmp_path)), Clock()
    lease = acquire(storage, 60, clock)
    for process in (None, "another boot/pid:[1]/1/1"):
        storage.write_bytes("lease/00001.json", leases._json(replace(lease, process=process)))
        with pytest.raises(LeaseError):
            acquire(storage, 60, clock)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"number": 1}', b"\xff"])
def test_what_is_no_lease_holds_nothing(tmp_path: Path, content: bytes) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("lease/00007.json", content)
    assert acquire(storage, 60).number == 8


def test_ages_are_for_people(tmp_path: Path) -> None:
    clock = Clock()
    lease = acquire(Storage(str(tmp_path)), 60, clock)
    assert "for 2 h 1 min (since 1970-01-12T13:46:40+00:00)" in describe(lease, clock.now + 7265)
    assert json.loads((tmp_path / "lease" / "00001.json").read_text())["number"] == 1
