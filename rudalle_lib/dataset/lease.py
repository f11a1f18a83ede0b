"""The lease of an output: at most one run writes there at a time.

A lease is a file `lease/<number>.json`, created only if it does not exist; the file with the
highest number is valid. Its holder renews it by rewriting it, and frees it by marking it as free.
A run that finds it free, or not renewed in time, creates the next number; only one run can. A
holder that stalled for too long then sees another lease and knows that it lost its own. Age is
measured by the clock of the storage, so the clocks of machines may differ.

A holder that stalled may still be alive and go on, as after a machine was suspended. So whoever
takes a lease over from it raises its *term*, which is part of the names of files from then on
(`layout.version_of`): the old holder cannot reach what the new one writes.

The file names the holder's machine and process. So a run can take over at once from one that was
killed on the same machine; that one writes no more, and the term stays.

Runs of some shards (`dataset.range_lease`) hold the lease of the output only to plan, to take
their shards and to report, and a lease of their shards in between. A whole run starts only if
there is none.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from rudalle_lib.dataset import layout
from rudalle_lib.dataset.lease_files import (
    PLAN,
    REPORT,
    RUN,
    Lease,
    LeaseMark,
    describe,
    is_gone,
    list_leases,
    new_lease,
    newest,
    read_lease,
    read_range_lease,
    read_range_leases,
)
from rudalle_lib.errors import LeaseError, LeaseLostError, StorageError
from rudalle_lib.humanize import duration
from rudalle_lib.storage.guards import guarding
from rudalle_lib.storage.probes import creates_exclusively, current_time
from rudalle_lib.storage.storage import Storage

RENEWALS = 4
"""How many times a lease is renewed before it would expire."""

MAX_ATTEMPTS = 10
"""Attempts to create a lease while other runs create leases, too."""

SETTLING_SECONDS = 2.0
"""Where a store replaces files that exist, two runs that start together see after this time which
of them wrote last."""

WAIT_SECONDS = 1.0
"""How long a run of shards waits before it looks again whether another one has planned."""

NOT_EXCLUSIVE = (
    "This storage replaces files that exist although it is asked not to (it ignores "
    "If-None-Match), so it cannot lock. Two runs that start within {seconds:.0f} s of each other "
    "may not notice each other at once; start only one run per output."
)


class HeldError(LeaseError):
    """A lease is held.

    Attributes:
        lease: the lease.
    """

    def __init__(self, message: str, lease: Lease) -> None:
        super().__init__(message)
        self.lease = lease


@contextmanager
def hold(
    storage: Storage,
    seconds: float,
    notice: Callable[[str], None] = lambda _: None,
    on_lost: Callable[[], None] = lambda: None,
    purpose: str = RUN,
) -> Iterator[Holding]:
    """Hold the lease of an output in a `with` block: renew it in a thread, free it at the end.

    Args:
        storage: The output.
        seconds: Duration of the lease.
        notice: Called with one sentence if the storage cannot lock.
        on_lost: Called from the thread when another run has taken over.
        purpose: `RUN`; or `PLAN` or `REPORT`, for a short time, which wait while others do so.

    Raises:
        HeldError: Another run holds it or, unless it is held to plan, some of its shards.
        StorageError: It cannot be written.
    """
    token = uuid.uuid4().hex
    try:  # a signal can strike at any moment, even right after the lease is created
        lease = _acquire_in_turn(storage, seconds, notice, token, purpose)
        with keep(storage, lease, on_lost) as holding:
            with suppress(StorageError):  # leftovers of killed runs do no harm
                storage.sweep_temporary(seconds)
            yield holding
    finally:
        with suppress(StorageError):  # an unfreed lease expires
            free(storage, token)


@contextmanager
def keep(
    storage: Storage, lease: Lease, on_lost: Callable[[], None] = lambda: None
) -> Iterator[Holding]:
    """Renew a lease in a thread during a `with` block, and guard all changes.

    Args:
        storage: The output.
        lease: The lease, which this run has just created.
        on_lost: Called from the thread when another run has taken over.
    """
    holding = Holding(storage, lease, on_lost)
    thread = threading.Thread(target=holding.keep_renewing, name="lease", daemon=True)
    thread.start()
    try:
        with guarding(storage.url(), holding.guard):
            yield holding
    finally:
        holding.stop()
        thread.join()


class Holding:
    """A lease that this run holds.

    Attributes:
        lease: The lease as last written.
        lost: An error message once another run has taken over, else None.
    """

    def __init__(
        self, storage: Storage, lease: Lease, on_lost: Callable[[], None] = lambda: None
    ) -> None:
        self._storage = storage
        self._on_lost = on_lost
        self._stopped = threading.Event()
        self._renewing = threading.local()
        self._proved = _uptime()
        self.lease = lease
        self.lost: str | None = None

    @property
    def mark(self) -> LeaseMark:
        """The mark to pass to `check`."""
        return self.lease.mark

    def renew(self) -> None:
        """Extend the lease by its duration.

        Raises:
            LeaseLostError: Another run has taken over.
            StorageError: The lease cannot be written.
        """
        self._write(replace(self.lease, renewed=time.time()))

    def guard(self) -> None:
        """Renew the lease if this process has not done so in time, as after it was paused.

        Raises:
            LeaseLostError: Another run has taken over.
            StorageError: The lease cannot be written.
        """
        if getattr(self._renewing, "now", False):  # the guard of its own write
            return
        if self.lost is not None:
            raise LeaseLostError(self.lost)
        if _uptime() - self._proved > self.lease.seconds:
            self.renew()

    def keep_renewing(self) -> None:
        """Renew until `stop` is called or the lease is lost."""
        while not self._stopped.wait(self.lease.seconds / RENEWALS):
            try:
                self.renew()
            except LeaseLostError as error:
                self.lost = str(error)
                self._on_lost()
                return
            except StorageError:  # perhaps transient; `check` protects what the run writes
                continue

    def stop(self) -> None:
        """Make `keep_renewing` return."""
        self._stopped.set()

    def _write(self, lease: Lease) -> None:
        started, self._renewing.now = _uptime(), True
        try:
            check(self._storage, self.mark)
            self._storage.write_bytes(lease.path, lease.to_json())
        finally:
            self._renewing.now = False
        self.lease, self._proved = lease, started


def acquire(
    storage: Storage,
    seconds: float,
    notice: Callable[[str], None] = lambda _: None,
    token: str | None = None,
    purpose: str = RUN,
) -> Lease:
    """Create the next lease of an output.

    Args:
        storage: The output.
        seconds: Duration of the lease.
        notice: Called with one sentence if the storage cannot lock.
        token: Its token, which no other lease of the output has; None makes one.
        purpose: What it is held for. All but `PLAN` need that nobody works on shards.

    Raises:
        LeaseError: Another run holds the lease, or runs hold some of its shards.
        StorageError: It cannot be written.
    """
    exclusive = creates_exclusively(storage)
    if not exclusive:
        notice(NOT_EXCLUSIVE.format(seconds=SETTLING_SECONDS))
    token = token or uuid.uuid4().hex
    for _ in range(MAX_ATTEMPTS):
        listing = list_leases(storage)
        current = newest(storage, listing.numbers)
        ended = 0 if current is None else current.ended_ranges
        ranges = read_range_leases(storage, listing, ended)
        # The successor of the lease seen above; one created since then must make this attempt fail.
        lease = replace(
            new_lease(1 + max(listing.numbers, default=0), token, seconds),
            term=_term(storage, current, ranges, purpose),
            purpose=purpose,
            ended_ranges=ended if purpose == PLAN else max([ended, *listing.range_numbers]),
        )
        storage.create(lease.path, lease.to_json())
        if not exclusive:
            time.sleep(SETTLING_SECONDS)
        # Read it back: responses get lost, and some stores do not support `If-None-Match`.
        if read_lease(storage) == lease:
            alone = purpose != PLAN or all(map(is_over, ranges))
            if alone and current is not None and lease.term > current.term:
                # What an earlier holder, if it is alive, has written so far cannot be renamed.
                storage.sweep_temporary(0)
            _delete_earlier(storage, lease)
            return lease
    raise LeaseError(
        f"Too many runs start to write to {storage.public_path()} at the same time; start only one."
    )


def _acquire_in_turn(
    storage: Storage, seconds: float, notice: Callable[[str], None], token: str, purpose: str
) -> Lease:
    """As `acquire`; who plans or reports waits while others do so."""
    while True:
        try:
            return acquire(storage, seconds, notice, token, purpose)
        except HeldError as error:
            if purpose == RUN or error.lease.purpose not in (PLAN, REPORT):
                raise
        time.sleep(min(WAIT_SECONDS, seconds / RENEWALS))


def free(storage: Storage, token: str) -> None:
    """Free the leases with this token for other runs, if they are valid.

    Raises:
        StorageError: They cannot be written.
    """
    listing = list_leases(storage)
    whole = newest(storage, listing.numbers)
    ended = 0 if whole is None else whole.ended_ranges
    for lease in [whole, *read_range_leases(storage, listing, ended)]:
        if lease is not None and lease.token == token and not lease.free:
            freed = replace(lease, renewed=time.time(), free=True)
            storage.write_bytes(lease.path, freed.to_json())


def _term(storage: Storage, current: Lease | None, ranges: Sequence[Lease], purpose: str) -> int:
    """The term of the next lease of an output.

    Raises:
        HeldError: The output or, unless it is taken to plan, some of its shards are held.
    """
    before = [] if current is None else [next_term(storage, current)]
    if purpose == PLAN:  # terms of leases that are deleted must not be used again
        before += [lease.term for lease in ranges if is_over(lease)]
    else:
        before += [next_term(storage, lease) for lease in ranges]
    return max(before, default=0)


def next_term(storage: Storage, current: Lease, now: float | None = None) -> int:
    """The term of whoever takes a lease over.

    Args:
        storage: The output.
        current: The lease.
        now: Time by the clock of the storage, if it is known: saves asking.

    Raises:
        HeldError: It is still held.
    """
    if is_over(current):
        return current.term
    age = _age(storage, current, now)
    if age > current.seconds:
        return current.term + 1
    does = "writes to" if current.shards is None else f"works on {current.shards.named} of"
    raise HeldError(
        f"Another run {does} {storage.public_path()}: {describe(current, age)}. Wait for it or "
        "stop it. If it has died, run again later: a lease must be renewed within "
        f"{duration(current.seconds)}.",
        current,
    )


def is_over(lease: Lease) -> bool:
    """Whether its holder surely writes no more: it freed the lease, or its process is gone."""
    return lease.free or is_gone(lease.process)


def _age(storage: Storage, lease: Lease, now: float | None = None) -> float:
    """Seconds since a lease was renewed, by the clock of the storage."""
    renewed = storage.modified(lease.path)
    now = current_time(storage) if now is None else now
    return now - (lease.renewed if renewed is None else renewed)


def _delete_earlier(storage: Storage, lease: Lease) -> None:
    """Delete the files of leases that a new lease of an output has made invalid."""
    listing = list_leases(storage)
    for number in listing.numbers:
        if number < lease.number:
            storage.delete(layout.lease_path(number))
    for number, shards in listing.ranges:
        if number <= lease.ended_ranges:
            storage.delete(layout.lease_path(number, shards))


def check(storage: Storage, mark: LeaseMark) -> None:
    """Check that a lease is still held by the run with this mark.

    Raises:
        LeaseLostError: It was freed or taken over.
    """
    lease = read_lease(storage) if mark.shards is None else _range_lease(storage, mark)
    if lease is not None and lease.mark == mark and not lease.free:
        return
    holder = "nobody" if lease is None or lease.free else lease.holder
    what = "" if mark.shards is None else f"{mark.shards.named} of "
    raise LeaseLostError(
        f"This run no longer holds the lease of {what}{storage.public_path()}, {holder} does: it "
        "was not renewed in time, or was freed. Finished shards are safe; run again after the "
        "other run."
    )


def _range_lease(storage: Storage, mark: LeaseMark) -> Lease | None:
    """The valid lease of shards that a mark is for, or the one of others that has replaced it."""
    assert mark.shards is not None
    listing = list_leases(storage)
    whole = newest(storage, listing.numbers)
    if whole is not None and mark.number <= whole.ended_ranges:
        return whole
    for number, shards in sorted(listing.ranges, reverse=True):
        if number == mark.number or (number > mark.number and shards.overlaps(mark.shards)):
            return read_range_lease(storage, number, shards)
    return None


def _uptime() -> float:
    """Seconds of a clock that nobody sets, and that goes on while the machine sleeps if it can."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
