"""One run at a time writes to an output, on a disk and on a real S3 server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from rudalle_lib.dataset import lease as leases
from rudalle_lib.dataset.lease import Holding, acquire, check, hold
from rudalle_lib.dataset.lease_files import Lease, describe, newest, read_lease
from rudalle_lib.errors import LeaseError, LeaseLostError, StorageError
from rudalle_lib.storage.probes import current_time
from rudalle_lib.storage.storage import Storage


class Clock:
    """The clock of the storage, which tests put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self, storage: Storage) -> float:
        return current_time(storage) + self.ahead


@pytest.fixture(autouse=True)
def settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less patience with storages that cannot lock, which are on this machine here."""
    monkeypatch.setattr(leases, "SETTLING_SECONDS", 0.3)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which leases expire."""
    clock = Clock()
    monkeypatch.setattr(leases, "current_time", clock)
    return clock


@pytest.mark.parametrize("output_url", ["local", "s3"], indirect=True)  # rclone cannot lock
def test_one_of_many_concurrent_creators_of_a_file_succeeds(storage: Storage) -> None:
    contents = [f"number {number}".encode() for number in range(12)]
    start = threading.Barrier(len(contents))

    def create(content: bytes) -> bool:
        start.wait()
        return storage.create("a/b.json", content)

    with ThreadPoolExecutor(len(contents)) as pool:
        created = list(pool.map(create, contents))
    assert created.count(True) == 1
    assert storage.read_bytes("a/b.json") == contents[created.index(True)]
    assert not storage.create("a/b.json", b"later")
    assert storage.list() == ["a/b.json"]


@pytest.mark.parametrize("output_url", ["local", "s3"], indirect=True)  # rclone cannot lock
def test_one_of_many_concurrent_runs_gets_the_lease(storage: Storage) -> None:
    start = threading.Barrier(6)

    def take(_: int) -> Lease | LeaseError:
        start.wait()
        try:
            return acquire(storage, 60)
        except LeaseError as error:
            return error

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(take, range(6)))
    (winner,) = [lease for lease in results if isinstance(lease, Lease)]
    assert read_lease(storage) == winner
    assert storage.list("lease") == ["lease/00001.json"]


@pytest.mark.parametrize("output_url", ["local", "s3"], indirect=True)  # rclone cannot lock
def test_a_lease_created_after_another_run_looked_is_respected(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    other: list[Lease] = []

    def newest_just_before_a_lease_is_created(
        storage: Storage, numbers: Sequence[int]
    ) -> Lease | None:
        result = newest(storage, numbers)
        if not other:
            monkeypatch.setattr(leases, "newest", newest)
            other.append(acquire(storage, 60))  # another run, between reading and creating
        return result

    monkeypatch.setattr(leases, "newest", newest_just_before_a_lease_is_created)
    with pytest.raises(LeaseError):
        acquire(storage, 60)
    assert read_lease(storage) == other[0]


def test_the_error_of_a_second_run_names_holder_and_age(storage: Storage, clock: Clock) -> None:
    with hold(storage, 120) as first:
        clock.ahead += 75
        with pytest.raises(LeaseError) as raised, hold(storage, 120):
            raise AssertionError("two runs hold the lease")
        message = str(raised.value)
        for part in (
            storage.public_path(),
            "process ",
            "renewed 1 min 1",
            "must be renewed within 2 min 0 s",
        ):
            assert part in message
    with hold(storage, 120) as second:
        assert (second.mark.number, second.mark.term) == (2, 0)
        assert second.mark.token != first.mark.token


def test_a_lease_is_freed_at_the_end_and_on_failure(storage: Storage) -> None:
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), hold(storage, 120):
            raise error
    lease = read_lease(storage)
    assert lease is not None and lease.free and lease.number == 3
    assert storage.list("lease") == ["lease/00003.json"]


def test_a_signal_at_any_line_of_its_start_leaves_no_held_lease(tmp_path: Path) -> None:
    """The handlers of signals raise between any two lines."""
    for line in range(1000):
        storage, left = Storage(str(tmp_path / str(line))), line

        def strike(frame: FrameType, event: str, _: object) -> Any:
            nonlocal left
            if frame.f_code.co_filename != leases.__file__:
                return None
            left -= event == "line"
            if left < 0:
                raise KeyboardInterrupt
            return strike

        try:
            sys.settrace(strike)
            with hold(storage, 120):
                sys.settrace(None)
                break
        except KeyboardInterrupt:
            lease = read_lease(storage)
            assert lease is None or lease.free, f"line {line} of the start"
        finally:
            sys.settrace(None)
    assert line > 30


def test_a_new_holder_sweeps_the_temporary_files_of_killed_runs(tmp_path: Path) -> None:
    (tmp_path / ".tmp").mkdir()
    abandoned, recent = (tmp_path / ".tmp" / (32 * digit) for digit in "ab")
    for path, age in ((abandoned, 130), (recent, 60)):
        path.write_bytes(b"half a file")
        os.utime(path, (time.time() - age,) * 2)
    with hold(Storage(str(tmp_path)), 120):
        assert not abandoned.exists() and recent.exists()


def test_an_expired_lease_is_taken_over_and_its_holder_notices(
    storage: Storage, clock: Clock
) -> None:
    first = Holding(storage, acquire(storage, 60))
    clock.ahead += 50
    with pytest.raises(LeaseError, match="renewed 5[0-9] s ago"):
        acquire(storage, 60)
    first.renew()
    clock.ahead += 20
    second = Holding(storage, acquire(storage, 60))
    assert (first.mark.term, second.mark.term) == (0, 1)  # the first may still be alive
    for attempt in (first.renew, lambda: check(storage, first.mark)):
        with pytest.raises(LeaseLostError, match="no longer holds the lease"):
            attempt()
    leases.free(storage, first.mark.token)  # another's lease is left alone
    second.renew()
    check(storage, second.mark)
    leases.free(storage, second.mark.token)
    with pytest.raises(LeaseLostError, match="nobody does"):
        check(storage, second.mark)
    assert acquire(storage, 60).term == 1  # freed: its files stay, and the term with them


def test_the_age_of_a_lease_is_that_of_the_storage(storage: Storage) -> None:
    """The clock of the machine that holds it may be wrong by hours."""
    lease = acquire(storage, 60)
    for hours in (-5, 5):
        wrong = replace(lease, renewed=lease.renewed + hours * 3600)
        storage.write_bytes("lease/00001.json", wrong.to_json())
        with pytest.raises(LeaseError, match="renewed [0-9.]+ s ago"):
            acquire(storage, 60)


def test_a_lease_with_the_number_of_another_is_not_taken_for_it(storage: Storage) -> None:
    """As after a holder was taken over by two runs, the last of which has the same number."""
    first = Holding(storage, acquire(storage, 60))
    storage.write_bytes("lease/00001.json", replace(first.lease, token="other").to_json())
    with pytest.raises(LeaseLostError):
        check(storage, first.mark)


def test_a_storage_that_replaces_files_is_named_and_one_of_two_runs_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replacing(storage: Storage, path: str, content: bytes) -> bool:
        storage.write_bytes(path, content)
        return True

    monkeypatch.setattr(Storage, "create", replacing)
    monkeypatch.setattr(leases, "SETTLING_SECONDS", 0.5)
    storage = Storage(str(tmp_path))
    notices: list[str] = []
    start = threading.Barrier(3)

    def take(_: int) -> Lease | LeaseError:
        start.wait()
        try:
            return acquire(storage, 60, notices.append)
        except LeaseError as error:
            return error

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(take, range(3)))
    (winner,) = [lease for lease in results if isinstance(lease, Lease)]
    assert read_lease(storage) == winner
    assert len(notices) == 3 and "If-None-Match" in notices[0]


@pytest.mark.parametrize("output_url", ["local", "s3"], indirect=True)  # rclone cannot lock
def test_a_storage_that_locks_gives_no_notice(storage: Storage) -> None:
    acquire(storage, 60, pytest.fail)


def test_a_holder_that_was_paused_proves_its_lease_before_it_changes_anything(
    storage: Storage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hold(storage, 60) as holding:
        storage.write_bytes("a", b"1")
        before = holding.lease.renewed
        uptime = leases._uptime() + 100
        monkeypatch.setattr(leases, "_uptime", lambda: uptime)
        storage.write_bytes("a", b"2")  # nobody has taken over
        assert holding.lease.renewed > before
        clock.ahead += 100
        second = Holding(storage, acquire(storage, 60))
        uptime += 100
        changes: list[Callable[[], object]] = [
            lambda: storage.write_bytes("a", b"3"),
            lambda: storage.create_many({"b": b"3"}),
            lambda: storage.delete("a"),
        ]
        for change in changes:
            with pytest.raises(LeaseLostError, match="no longer holds the lease"):
                change()
    check(storage, second.mark)
    assert storage.read_bytes("a") == b"2"
    assert [path for path in storage.list() if not path.startswith("lease/")] == ["a"]


def test_a_file_that_is_finished_at_a_takeover_is_not_renamed_into_place(
    tmp_path: Path, clock: Clock
) -> None:
    storage = Storage(str(tmp_path))
    first = acquire(storage, 60)
    with pytest.raises(StorageError, match="does not exist"), storage.writing("a") as stream:
        stream.write(b"1")
        clock.ahead += 100  # the holder is paused here
        assert acquire(storage, 60).term == first.term + 1
    assert not Path(tmp_path, "a").exists()


def test_a_lease_is_renewed_in_the_background_until_it_is_lost(tmp_path: Path) -> None:
    storage, lost = Storage(str(tmp_path)), threading.Event()
    with hold(storage, 0.4, on_lost=lost.set) as holding:
        before = holding.lease.renewed
        time.sleep(1)  # longer than the lease
        assert holding.lost is None and holding.lease.renewed > before + 0.4
        with pytest.raises(LeaseError):
            acquire(storage, 60)
        other = replace(holding.lease, number=2, token="t", holder="another")
        storage.write_bytes("lease/00002.json", other.to_json())
        assert lost.wait(10)
        assert holding.lost is not None and "another does" in holding.lost
    assert read_lease(storage) == other  # only its holder frees it


def test_the_lease_of_a_killed_run_on_this_machine_is_free_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from rudalle_lib.dataset.lease import acquire; "
        "from rudalle_lib.storage.storage import Storage; "
        "acquire(Storage(sys.argv[1]), 3600); print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(LeaseError, match=f"process {other.pid}"):
            acquire(Storage(str(tmp_path)), 60)
        other.kill()
    assert acquire(Storage(str(tmp_path)), 60).number == 2


def test_a_process_on_another_machine_is_never_assumed_dead(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    lease = acquire(storage, 60)
    for process in (None, "another boot/pid:[1]/1/1"):
        storage.write_bytes("lease/00001.json", replace(lease, process=process).to_json())
        with pytest.raises(LeaseError):
            acquire(storage, 60)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"number": 1}', b"\xff"])
def test_a_file_that_is_not_a_lease_is_ignored(tmp_path: Path, content: bytes) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("lease/00007.json", content)
    assert acquire(storage, 60).number == 8


def test_ages_are_readable(tmp_path: Path) -> None:
    lease = replace(acquire(Storage(str(tmp_path)), 60), since=1e6, renewed=1e6)
    assert "for 2 h 1 min (since 1970-01-12T13:46:40+00:00)" in describe(lease, 7265)
    assert json.loads((tmp_path / "lease" / "00001.json").read_text())["number"] == 1
