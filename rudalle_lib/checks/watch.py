"""Watching a run from its output alone: how far it is, how fast, and whether it still works.

Made for many outputs and frequent looks: a look reads only the manifests that are new since the
last one. On an object store that is one listing of `shards/` (a request per 1,000 of them), the
lease (a listing and a read), and one read per new manifest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from rudalle_lib.dataset import layout
from rudalle_lib.dataset.lease import is_over
from rudalle_lib.dataset.lease_files import Lease, read_lease
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
class Look:
    """What a look at an output has found.

    Attributes:
        output: its public URL.
        state: whether somebody works on it.
        name: of the run; the last part of the URL until its first report.
        problem: why it cannot be read, if so.
        holder: user, machine and process that hold the lease, or held it last.
        since: when the lease was taken, in seconds since 1970.
        planned: number of planned shards.
        totals: sums over finished shards.
        usage: speed and idle share since the lease was taken; None until a shard is finished.
        seconds_left: estimate; None if nothing is known yet, or nobody works on it.
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
        self._renewal_seen: float | None = None
        self._name: str | None = None

    def look(self) -> Look:
        """Look at the output; a fault of the storage becomes a problem of the result."""
        try:
            return self._look()
        except RudalleError as error:
            return Look(self._storage.public_path(), "unreadable", self._name or "", str(error))

    def _look(self) -> Look:
        self._read_lease()
        self._read_manifests()
        lease, now = self._lease, self._clock()
        if not self._planned:
            raise no_run_error(self._storage)
        sums = totals(self._manifests.values())
        state = self._state(sums.shards, now)
        usage = None if lease is None else self._usage(lease.since)
        left = None
        if state == "running" and lease is not None:
            left = self._seconds_left(lease.since, now)
        return Look(
            output=self._storage.public_path(),
            state=state,
            name=self._name or self._storage.public_path().rpartition("/")[2],
            holder=None if lease is None else lease.holder,
            since=None if lease is None else lease.since,
            planned=self._planned,
            totals=sums,
            usage=usage,
            seconds_left=left,
        )

    def _read_lease(self) -> None:
        """Read the lease; after a change of it, the plan and the name of the run as well."""
        before, self._lease = self._lease, read_lease(self._storage)
        renewed = None if self._lease is None else self._lease.renewed
        if before is not None and renewed != before.renewed:
            self._renewal_seen = self._clock()
        holds = None if self._lease is None else (self._lease.mark, self._lease.free)
        held = None if before is None else (before.mark, before.free)
        if not self._planned or holds != held:
            plans = self._storage.list(layout.PLAN_FOLDER)
            self._planned = sum(layout.index_of(path, "plan") is not None for path in plans)
            run = read_run_manifest(self._storage)
            self._name = None if run is None else run.name

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

    def _state(self, finished: int, now: float) -> State:
        lease = self._lease
        if lease is None or lease.free:
            return "finished" if finished >= self._planned else "unfinished"
        # Its own clock may be wrong, so what counts is when this process saw the last renewal.
        seen = self._renewal_seen if self._renewal_seen is not None else lease.renewed
        return "stalled" if is_over(lease) or now - seen > lease.seconds else "running"

    def _usage(self, since: float) -> RunUsage | None:
        recent = self._finished_since(since)
        if not recent:
            return None
        last = max(_time(one.finished) for one in recent)
        return measure_usage(recent, _iso(since), _iso(last))

    def _seconds_left(self, since: float, now: float) -> float | None:
        done = len(self._finished_since(since))
        left = self._planned - len(self._manifests)
        return left * max(now - since, 0.0) / done if done and left > 0 else None

    def _finished_since(self, since: float) -> list[ShardManifest]:
        begin = math.floor(since)  # manifests have whole seconds
        return [one for one in self._manifests.values() if _time(one.finished) >= begin]


def _time(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat()
