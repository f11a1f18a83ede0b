"""Watching a run from its output alone: how far it is, how fast, and whether it still works.

Made for many outputs and frequent looks: a look reads only the manifests that are new since the
last one. On an object store that is one listing of `shards/` (a request per 1,000 of them), the
lease (a listing and a read), and one read per new manifest. Runs that share an output have a lease
each, and add a read per lease.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Literal

from rudalle_lib.dataset import layout
from rudalle_lib.dataset.lease import is_over
from rudalle_lib.dataset.lease_files import (
    Lease,
    LeaseMark,
    list_leases,
    newest,
    read_range_leases,
)
from rudalle_lib.dataset.manifests import (
    no_run_error,
    read_run_manifest,
    read_shard_manifest,
    totals,
)
from rudalle_lib.errors import RudalleError, ShardError
from rudalle_lib.report.usage import measure_usage
from rudalle_lib.schema.records import RunTotals, RunUsage, ShardManifest
from rudalle_lib.storage.filesystems import list_stamps
from rudalle_lib.storage.storage import Storage

State = Literal["running", "stalled", "unfinished", "finished", "unreadable"]
"""`stalled`: the lease is held, but has not been renewed in time, or its process is gone.
`unfinished`: nobody works on it, and shards are missing: they failed, or the run was stopped."""


@dataclass(frozen=True)
class Worker:
    """A run that makes some shards of an output, while others make others.

    Attributes:
        shards: the shards that its lease is for, such as "0-99".
        state: whether it still renews that lease.
        holder: its user, machine and process.
        since: when the lease was taken, in seconds since 1970.
        planned: number of these shards.
        totals: sums over those that are finished.
        usage: speed and idle share since then; None until one of them is finished.
    """

    shards: str
    state: State
    holder: str
    since: float
    planned: int
    totals: RunTotals
    usage: RunUsage | None


@dataclass(frozen=True)
class Look:
    """What a look at an output has found.

    Attributes:
        output: its public URL.
        state: whether somebody works on it.
        name: of the run; the last part of the URL until its first report.
        problem: why it cannot be read, if so.
        holder: user, machine and process that hold the lease of the output, or held it last.
        since: when the run began, or the first of the runs that share the output; in seconds since
            1970.
        planned: number of planned shards.
        totals: sums over finished shards.
        usage: speed and idle share since then; None until a shard is finished.
        seconds_left: estimate; None if nothing is known yet, or nobody works on it.
        workers: the runs that share the output, in the order of their shards.
    """

    output: str
    state: State
    name: str = ""
    problem: str | None = None
    holder: str | None = None
    since: float | None = None
    planned: int = 0
    totals: RunTotals = field(default_factory=RunTotals)
    usage: RunUsage | None = None
    seconds_left: float | None = None
    workers: tuple[Worker, ...] = ()

    @property
    def missing(self) -> int:
        """Number of shards that are not finished."""
        return max(self.planned - self.totals.shards, 0)

    def as_json(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        return {**asdict(self), "missing": self.missing}


class Watcher:
    """Looks at one output, again and again.

    Args:
        url: the output.
        clock: seconds since 1970.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        self._storage = Storage(url)
        self._clock = clock
        self._planned = 0
        self._manifests: dict[int, ShardManifest] = {}
        self._stamps: Mapping[str, str] = {}
        self._lease: Lease | None = None
        self._ranges: list[Lease] = []
        self._renewals: dict[LeaseMark, tuple[float, float | None]] | None = None
        self._shared_since: float | None = None
        self._name: str | None = None

    def look(self) -> Look:
        """Look at the output; a fault of the storage becomes a problem of the result."""
        try:
            return self._look()
        except RudalleError as error:
            return Look(self._storage.public_path(), "unreadable", self._name or "", str(error))

    def _look(self) -> Look:
        self._read_leases()
        self._read_manifests()
        lease, now = self._lease, self._clock()
        if not self._planned:
            raise no_run_error(self._storage)
        sums = totals(self._manifests.values())
        workers = tuple(self._worker(one, now) for one in self._ranges)
        state = self._state(sums.shards, workers, now)
        since = self._since(workers)
        return Look(
            output=self._storage.public_path(),
            state=state,
            name=self._name or self._storage.public_path().rpartition("/")[2],
            holder=None if lease is None else lease.holder,
            since=since,
            planned=self._planned,
            totals=sums,
            usage=None if since is None else _usage(self._manifests.values(), since),
            seconds_left=(
                self._seconds_left(since, now) if state == "running" and since is not None else None
            ),
            workers=workers,
        )

    def _read_leases(self) -> None:
        """Read the leases; after a change of that of the output, plan and name of the run, too."""
        before, listing = self._lease, list_leases(self._storage)
        self._lease = lease = newest(self._storage, listing.numbers)
        ended = 0 if lease is None else lease.ended_ranges
        held = [one for one in read_range_leases(self._storage, listing, ended) if not one.free]
        self._ranges = sorted(held, key=attrgetter("shards"))
        self._see_renewals([*self._ranges, *([] if lease is None else [lease])])
        holds = None if lease is None else (lease.mark, lease.free)
        if not self._planned or holds != (None if before is None else (before.mark, before.free)):
            plans = self._storage.list(layout.PLAN_FOLDER)
            self._planned = sum(layout.index_of(path, "plan") is not None for path in plans)
            run = read_run_manifest(self._storage)
            self._name = None if run is None else run.name

    def _see_renewals(self, leases: Sequence[Lease]) -> None:
        """Note when each lease was seen to be renewed; None if not since the first look."""
        now, earlier = self._clock(), self._renewals
        self._renewals = {}
        for one in leases:
            unseen = None if earlier is None else now
            renewed, seen = (earlier or {}).get(one.mark, (one.renewed, unseen))
            self._renewals[one.mark] = one.renewed, now if one.renewed != renewed else seen

    def _read_manifests(self) -> None:
        """Read the manifests that are new or replaced; the highest term of a shard is valid."""
        stamps = list_stamps(self._storage.url(layout.SHARDS_FOLDER))
        terms: dict[int, int] = {}
        changed: set[int] = set()
        for file, stamp in stamps.items():
            name = layout.parse(f"{layout.SHARDS_FOLDER}/{file}")
            if name is None or name.kind != "manifest" or name.number is None:
                continue
            terms[name.number] = max(terms.get(name.number, 0), name.term)
            if self._stamps.get(file) != stamp:
                changed.add(name.number)
        for index in self._manifests.keys() - terms.keys():
            del self._manifests[index]
        for index in sorted(changed):
            self._manifests.pop(index, None)
            with suppress(ShardError):  # damaged: the next run makes its shard again
                manifest = read_shard_manifest(self._storage, index, terms[index])
                if manifest is not None:
                    self._manifests[index] = manifest
        self._stamps = stamps

    def _worker(self, lease: Lease, now: float) -> Worker:
        shards = lease.shards
        assert shards is not None
        own = [one for index, one in self._manifests.items() if shards.holds(index)]
        return Worker(
            shards=str(shards),
            state=self._state_of(lease, now),
            holder=lease.holder,
            since=lease.since,
            planned=max(min(shards.last, self._planned - 1) - shards.first + 1, 0),
            totals=totals(own),
            usage=_usage(own, lease.since),
        )

    def _state(self, finished: int, workers: Sequence[Worker], now: float) -> State:
        lease = self._lease
        if lease is not None and not lease.free:
            return self._state_of(lease, now)
        if workers:
            return "running" if any(one.state == "running" for one in workers) else "stalled"
        return "finished" if finished >= self._planned else "unfinished"

    def _state_of(self, lease: Lease, now: float) -> State:
        """Whether the holder of a held lease still works."""
        # Its own clock may be wrong, so what counts is when this process saw the last renewal.
        assert self._renewals is not None
        _, seen = self._renewals[lease.mark]
        renewed = lease.renewed if seen is None else seen
        return "stalled" if is_over(lease) or now - renewed > lease.seconds else "running"

    def _since(self, workers: Sequence[Worker]) -> float | None:
        """When work began. Runs that share an output take one lease after another."""
        if not workers:
            self._shared_since = None
            return None if self._lease is None else self._lease.since
        begun = [one.since for one in workers]
        self._shared_since = min([*begun, self._shared_since or begun[0]])
        return self._shared_since

    def _seconds_left(self, since: float, now: float) -> float | None:
        done = len(_finished_since(self._manifests.values(), since))
        left = self._planned - len(self._manifests)
        return left * max(now - since, 0.0) / done if done and left > 0 else None


def _usage(manifests: Iterable[ShardManifest], since: float) -> RunUsage | None:
    recent = _finished_since(manifests, since)
    if not recent:
        return None
    last = max(_time(one.finished) for one in recent)
    return measure_usage(recent, _iso(since), _iso(last))


def _finished_since(manifests: Iterable[ShardManifest], since: float) -> list[ShardManifest]:
    begin = math.floor(since)  # manifests have whole seconds
    return [one for one in manifests if _time(one.finished) >= begin]


def _time(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat()
