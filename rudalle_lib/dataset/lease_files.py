"""The files of leases: who holds what, and which of them are valid.

A lease is for a whole output (`lease/<number>.json`) or for some of its shards
(`lease/shards/<number>.<first>-<last>.json`). Of the first kind the one with the highest number is
valid; of the second kind, for every shard the one with the highest number, unless a lease of the
output has ended it (`Lease.ended_ranges`).
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from rudalle_lib.dataset import layout
from rudalle_lib.dataset.layout import ShardRange
from rudalle_lib.humanize import duration
from rudalle_lib.storage.storage import Storage

RUN, PLAN, REPORT, SHARDS = "run", "plan", "report", "shards"
"""What a lease is held for. That of an output: by a whole run, or for a short time by a run of some
shards, which plans and takes its shards, or reports. That of shards: to work on them."""


class LeaseMark(NamedTuple):
    """What identifies a held lease; tasks show it before they write a manifest."""

    number: int
    token: str
    term: int = 0
    shards: ShardRange | None = None


@dataclass(frozen=True)
class Lease:
    """The content of a lease file.

    Attributes:
        number: Number of the lease; the highest is valid.
        token: Random token, unique to the leases of this run.
        holder: User, machine and process id, for people.
        process: Identifies the process uniquely, even after a reboot; None if unknown.
        since: When the lease was created, in seconds since 1970 by the holder's clock.
        renewed: When it was last renewed, likewise. For people: its age is that of the file.
        seconds: It must be renewed within this time, or another run may take it over.
        free: Whether the holder is done.
        term: How many times the output was taken over from a holder that may still be alive.
        purpose: What it is held for: `RUN`, `PLAN`, `REPORT` or `SHARDS`.
        ended_ranges: Number of the last lease of shards that is not valid any more; kept by all
            later leases of the output.
        shards: The shards that it is for; None for the whole output.
        settings: Digest of everything that images of a run of shards depend on.
        took_over: Whether it is for shards of a holder that may still be alive. It then stays,
            even if it is free, because it outbids what that holder may still write.
    """

    number: int
    token: str
    holder: str
    process: str | None
    since: float
    renewed: float
    seconds: float
    free: bool = False
    term: int = 0
    purpose: str = RUN
    ended_ranges: int = 0
    shards: ShardRange | None = None
    settings: str = ""
    took_over: bool = False

    @property
    def mark(self) -> LeaseMark:
        """What identifies it."""
        return LeaseMark(self.number, self.token, self.term, self.shards)

    @property
    def path(self) -> str:
        """Its file."""
        return layout.lease_path(self.number, self.shards)

    def to_json(self) -> bytes:
        """The content of its file."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()


def parse_lease(content: bytes) -> Lease | None:
    """The lease that a file holds; None if it holds something else."""
    with suppress(ValueError, TypeError, AttributeError):
        data = json.loads(content)
        shards = data.pop("shards", None)
        return Lease(**data, shards=ShardRange(*shards) if shards is not None else None)
    return None


# --- reading -----------------------------------------------------------------------------------


class Listing(NamedTuple):
    """The names of all lease files of an output.

    Attributes:
        numbers: of leases of the output.
        ranges: number and shards of every lease of shards.
    """

    numbers: list[int]
    ranges: list[tuple[int, ShardRange]]

    @property
    def range_numbers(self) -> list[int]:
        """Numbers of the leases of shards."""
        return [number for number, _ in self.ranges]

    def outbid(self, number: int, shards: ShardRange) -> bool:
        """Whether a lease of shards is not valid because of a later one of one of them."""
        return any(later > number and other.overlaps(shards) for later, other in self.ranges)


def list_leases(storage: Storage) -> Listing:
    """List the lease files of an output, in one request."""
    numbers, ranges = [], []
    for name in map(layout.parse, storage.list(layout.LEASE_FOLDER)):
        if name is not None and name.number is not None:
            if name.kind == "lease":
                numbers.append(name.number)
            elif name.shards is not None:
                ranges.append((name.number, name.shards))
    return Listing(numbers, ranges)


def read_lease(storage: Storage) -> Lease | None:
    """The newest lease of an output, held or not; None if there is none or it is damaged."""
    return newest(storage, list_leases(storage).numbers)


def newest(storage: Storage, numbers: Sequence[int]) -> Lease | None:
    """The lease of an output with the highest of some numbers; None if it is damaged or gone."""
    for number in sorted(numbers, reverse=True):
        content = storage.read_bytes_if_any(layout.lease_path(number))
        if content is not None:
            return parse_lease(content)
    return None


def read_range_leases(storage: Storage, listing: Listing, ended: int) -> list[Lease]:
    """The valid leases of shards, held or not.

    Args:
        storage: The output.
        listing: Its lease files.
        ended: Leases up to this number have ended (`Lease.ended_ranges`).
    """
    found = []
    for number, shards in listing.ranges:
        if number > ended and not listing.outbid(number, shards):
            found.append(read_range_lease(storage, number, shards))
    return [lease for lease in found if lease is not None]


def read_range_lease(storage: Storage, number: int, shards: ShardRange) -> Lease | None:
    """A lease of shards, held or not; None if it is damaged or gone."""
    content = storage.read_bytes_if_any(layout.lease_path(number, shards))
    lease = None if content is None else parse_lease(content)
    return lease if lease is not None and lease.shards == shards else None


# --- holders -----------------------------------------------------------------------------------


def new_lease(number: int, token: str, seconds: float) -> Lease:
    """A lease of this process, created now."""
    now, process = time.time(), _process(os.getpid())
    return Lease(number, token, _this_holder(), process, now, now, seconds)


def describe(lease: Lease, age: float) -> str:
    """Holder and age of a lease, for error messages; `age` is in seconds since its renewal."""
    since = datetime.fromtimestamp(lease.since, UTC).isoformat(timespec="seconds")
    renewed = max(0.0, age)
    held = duration(max(0.0, lease.renewed - lease.since) + renewed)
    return f"{lease.holder}, for {held} (since {since}), renewed {duration(renewed)} ago"


def _this_holder() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}, process {os.getpid()}"


def _process(pid: int) -> str | None:
    """Boot, namespace, id and start time of a process on Linux; None if it is gone or unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The fields after the name in parentheses; the start time is field 22 of the whole file.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] in "ZX":  # a zombie
            return None
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}/{pid}/{fields[19]}"
    except OSError:
        return None


def is_gone(process: str | None) -> bool:
    """Whether the process ran on this machine since its last boot, and has ended."""
    this_process = _process(os.getpid())
    if process is None or this_process is None:
        return False
    *place, pid, _ = process.split("/")
    return place == this_process.split("/")[:-2] and _process(int(pid)) != process
