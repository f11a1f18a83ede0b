"""The lease of an output: at most one run writes there at a time.

A lease is a file `lease/<number>.json`, created only if it is not there yet; the file of the
highest number counts. Its holder renews it by writing it again, and frees it by writing that it is
free. Whoever finds it free, or not renewed for its time, creates the next number: only one can. So
a holder that was away too long finds a higher number, and knows that it lost the lease.

The file says on which machine the holder runs and as which process, so that a run that was killed
is followed at once on the same machine. Elsewhere clocks have to agree to within the lease's time.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from rudalle_lib import layout
from rudalle_lib.errors import LeaseError, LeaseLostError, StorageError
from rudalle_lib.storage import Storage

#: A lease is renewed this many times in its time.
RENEWALS = 4

#: Leases that may be created by others while one tries to, before one gives up.
TRIES = 10

Clock = Callable[[], float]


@dataclass(frozen=True)
class Lease:
    """What a lease file says.

    Attributes:
        token: of this lease alone, at random.
        holder: user, machine and process id, for people.
        process: what tells this process from all others that ever were; None where unknown.
        since, renewed: seconds since 1970, by the holder's clock.
        seconds: after which an unrenewed lease may be taken over.
        free: the holder is done.
    """

    number: int
    token: str
    holder: str
    process: str | None
    since: float
    renewed: float
    seconds: float
    free: bool = False

    def is_held(self, now: float) -> bool:
        """Whether the holder has to be taken for alive."""
        return not (self.free or now - self.renewed > self.seconds or _is_gone(self.process))


@contextmanager
def hold(storage: Storage, seconds: float, clock: Clock = time.time) -> Iterator[Holding]:
    """Take the lease of an output, renew it in a thread, and free it at the end, come what may.

    Raises:
        LeaseError: somebody else holds it.
        StorageError: it cannot be written.
    """
    holding = Holding(storage, acquire(storage, seconds, clock), clock)
    thread = threading.Thread(target=holding.keep_renewing, name="lease", daemon=True)
    thread.start()
    try:
        yield holding
    finally:
        holding.stop()
        thread.join()
        with suppress(StorageError, LeaseLostError):  # it ends by itself when its time is over
            holding.free()


class Holding:
    """A lease in the hands of its holder."""

    def __init__(self, storage: Storage, lease: Lease, clock: Clock = time.time) -> None:
        self._storage = storage
        self._clock = clock
        self._stopped = threading.Event()
        self.lease = lease
        self.lost: str | None = None

    @property
    def number(self) -> int:
        """What `check` asks for."""
        return self.lease.number

    def renew(self) -> None:
        """Say that the holder is alive.

        Raises:
            LeaseLostError: somebody else has taken the lease over.
            StorageError: it cannot be written.
        """
        self._write(replace(self.lease, renewed=self._clock()))

    def free(self) -> None:
        """Let others have it. Raises as `renew`."""
        self._write(replace(self.lease, renewed=self._clock(), free=True))

    def keep_renewing(self) -> None:
        """Renew until `stop` is called or the lease is lost."""
        while not self._stopped.wait(self.lease.seconds / RENEWALS):
            try:
                self.renew()
            except LeaseLostError as error:
                self.lost = str(error)
                return
            except StorageError:  # a bad moment; what is written is guarded by `check`
                continue

    def stop(self) -> None:
        """Let `keep_renewing` return."""
        self._stopped.set()

    def _write(self, lease: Lease) -> None:
        check(self._storage, self.number)
        self._storage.write_bytes(layout.lease_path(self.number), _json(lease))
        self.lease = lease


def acquire(storage: Storage, seconds: float, clock: Clock = time.time) -> Lease:
    """Create the next lease. Raises as `hold`."""
    token = uuid.uuid4().hex
    for _ in range(TRIES):
        numbers = _numbers(storage)
        before = _newest(storage, numbers)
        now = clock()
        if before is not None and before.is_held(now):
            raise LeaseError(
                f"Another run writes to {storage.public_path()}: {describe(before, now)}. Wait for "
                f"it or stop it; if it is dead, the output is free {before.seconds:,.0f} s after "
                "its last sign of life."
            )
        # After those that were judged, not after one created since: that one has to be in the way.
        number = 1 + max(numbers, default=0)
        lease = Lease(number, token, _holder(), _process(os.getpid()), now, now, seconds)
        storage.create(layout.lease_path(number), _json(lease))
        # What lies there decides: answers get lost, and a store may not know `If-None-Match`.
        if read_lease(storage) == lease:
            for older in _numbers(storage):
                if older < number:
                    storage.delete(layout.lease_path(older))
            return lease
    raise LeaseError(f"Many runs start to write to {storage.public_path()} at once; start one.")


def read_lease(storage: Storage) -> Lease | None:
    """The newest lease of an output, held or not; None if there is none that can be read."""
    return _newest(storage, _numbers(storage))


def _newest(storage: Storage, numbers: Sequence[int]) -> Lease | None:
    for number in sorted(numbers, reverse=True):
        content = storage.read_bytes_if_any(layout.lease_path(number))
        if content is not None:
            with suppress(ValueError, TypeError):
                return Lease(**json.loads(content))
            return None
    return None


def check(storage: Storage, number: int) -> None:
    """Return if the lease of this number is still held.

    Raises:
        LeaseLostError: it was freed or taken over.
    """
    lease = read_lease(storage)
    if lease is not None and lease.number == number and not lease.free:
        return
    holder = "nobody" if lease is None or lease.free else lease.holder
    raise LeaseLostError(
        f"This run no longer holds the lease of {storage.public_path()}, {holder} does: it was "
        "silent for too long, or is over. What it finished is safe; run again when the other ended."
    )


def describe(lease: Lease, now: float) -> str:
    """Holder and age, for people."""
    since = datetime.fromtimestamp(lease.since, UTC).isoformat(timespec="seconds")
    return (
        f"{lease.holder}, for {_duration(now - lease.since)} (since {since}), last sign of life "
        f"{_duration(now - lease.renewed)} ago"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )


def _numbers(storage: Storage) -> list[int]:
    found = (layout.index_of(path) for path in storage.list(layout.LEASE_FOLDER))
    return [number for number in found if number is not None]


def _json(lease: Lease) -> bytes:
    return (json.dumps(asdict(lease), indent=2) + "\n").encode()


def _holder() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}, process {os.getpid()}"


def _process(pid: int) -> str | None:
    """Boot, namespace, id and start of a process on Linux; None if it is gone, or elsewhere."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # What follows the name in parentheses; the start is the 22nd field of all.
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if started[0] in "ZX":  # it has ended; its parent has not asked yet
            return None
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}/{pid}/{started[19]}"
    except OSError:
        return None


def _is_gone(process: str | None) -> bool:
    """Whether the process ran where this one runs, and is no more."""
    own = _process(os.getpid())
    if process is None or own is None:
        return False
    *place, pid, _ = process.split("/")
    return place == own.split("/")[:-2] and _process(int(pid)) != process
