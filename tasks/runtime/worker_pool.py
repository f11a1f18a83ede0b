"""The workers of a run, one per GPU: each shard goes to the one with the least to do.

A shard stays with its worker, which has its networks in memory. If a worker dies, its shards go to
others. Workers are processes of this machine (`tasks.runtime.process_worker`) or actors of a Ray
cluster (`tasks.runtime.ray_worker`).
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context, copy_context
from typing import Any, Protocol

from rudalle_lib.errors import ShardError, StoppedError
from tasks.runtime.events import Noticed, RoundFinished, emit, notice, report_round
from tasks.runtime.job import Job
from tasks.runtime.stopping import stop_if_requested, stop_requested
from tasks.runtime.worker_process import Call, Logged, Raised, Returned

LOGGER = logging.getLogger(__name__)

LAST_STAGE = "publish"
"""The stage after which a shard is finished."""

MAX_ATTEMPTS = 3
"""How often a task is started before its shard fails, if workers die under it."""

MAX_DEATHS = 3
"""A worker is left out after so many deaths without a task that it finished."""

LOOK = 0.2
"""Seconds between two looks whether a run must stop, or whether a worker is ready."""

LONG_WAIT = 60.0
"""Seconds without any worker after which the user is told."""

PATIENCE = 30.0
"""Seconds in which all workers must be ready to be asked something; one at least is waited for."""


@dataclasses.dataclass(eq=False)
class Answer:
    """The report on a call that is in progress; None if its worker has died."""

    context: Context = dataclasses.field(default_factory=copy_context)
    arrived: threading.Event = dataclasses.field(default_factory=threading.Event)
    report: Returned | Raised | None = None

    def happened(self, event: Any) -> None:
        """Call the listener of the caller; if it fails, so does the task, as in one process."""
        try:
            self.context.copy().run(_handle, event)
        except Exception as error:
            self.settle(Raised(0, error))

    def settle(self, report: Returned | Raised | None) -> None:
        """The call is over."""
        if not self.arrived.is_set():
            self.report = report
            self.arrived.set()


class Worker(Protocol):
    """Who runs tasks, several at a time. It starts again by itself after it has died.

    Attributes:
        on_death: is called after each death; the pool sets it.
    """

    on_death: Callable[[Worker], None]

    @property
    def is_ready(self) -> bool:
        """Whether it can be given work now."""

    @property
    def is_lost(self) -> bool:
        """Whether it will never be ready again, because it died again and again."""

    @property
    def description(self) -> str:
        """For logs: what it is, and its process."""

    def start(self, call: Call) -> Answer:
        """Start a task; its events reach the listener of the caller's context."""

    def stop(self) -> None:
        """Ask the tasks in progress to stop."""

    def hang_up(self) -> None:
        """End, whatever is in progress, and don't start again."""

    def wait_for_end(self) -> None:
        """Wait until it has ended."""


class WorkerPool:
    """Workers, and which shard each of them works on.

    Args:
        workers: at least one.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._closed = False
        self._shards: dict[int, Worker] = {}  # by index: who works on a shard
        self.workers = workers
        for worker in workers:
            worker.on_death = self._lost

    def call(self, module: str, name: str, parameters: Mapping[str, Any]) -> Any:
        """Run a task by the worker of its shard, and wait for it.

        Args:
            module: where the task is.
            name: of the task in it; also the name of its stage.
            parameters: its arguments; one of them is the `job`.

        Returns:
            What the task returns.

        Raises:
            ShardError: worker after worker died.
            StoppedError: the pool was closed, or the run must stop before the task was started.
            Exception: what the task raises.
        """
        job: Job = parameters["job"]
        shard, died = job.shard.index, None
        for _ in range(MAX_ATTEMPTS):
            worker = self._worker_of(shard, avoid=died)
            answer = worker.start(Call(next(self._numbers), module, name, parameters))
            described = worker.description
            report = _wait(worker, answer)
            self._check_open()
            if report is None:
                died = worker
                notice(f"{described} has died; {name} of shard {shard:05d} is started again.")
                continue
            if name == LAST_STAGE or isinstance(report, Raised):
                self._release(shard)
            if isinstance(report, Raised):
                raise report.error
            return report.result
        self._release(shard)
        raise ShardError(
            f"{MAX_ATTEMPTS} processes died while they worked on {name} of this shard; "
            "see the log of the system for why, and try a smaller batch_size"
        )

    def ask_all(self, module: str, name: str, parameters: Mapping[str, Any]) -> list[Any]:
        """Run a task by every worker, and wait for all of them.

        Workers that are not ready within `PATIENCE` are not asked, and those that die do not count.

        Args:
            module: where the task is.
            name: of the task in it.
            parameters: its arguments; one of them is a `job`.

        Returns:
            What the task returned, in the order of the workers; empty if all are lost.

        Raises:
            StoppedError: the pool was closed, or the run must stop.
            Exception: what the task raises.
        """
        asked = [
            (worker, worker.start(Call(next(self._numbers), module, name, parameters)))
            for worker in self._all_ready()
        ]
        reports = [_wait(worker, answer) for worker, answer in asked]
        self._check_open()
        for report in reports:
            if isinstance(report, Raised):
                raise report.error
        return [report.result for report in reports if isinstance(report, Returned)]

    def close(self) -> None:
        """End all workers."""
        self._closed = True
        for worker in self.workers:
            worker.hang_up()
        for worker in self.workers:
            worker.wait_for_end()

    def _check_open(self) -> None:
        if self._closed:
            raise StoppedError("The run has ended; the next run processes this shard again.")

    def _all_ready(self) -> list[Worker]:
        """All workers that are not lost, once they are ready or `PATIENCE` is over."""
        started = time.monotonic()
        while True:
            left = [worker for worker in self.workers if not worker.is_lost]
            ready = [worker for worker in left if worker.is_ready]
            over = time.monotonic() - started > PATIENCE
            if len(ready) == len(left) or (ready and over):
                return ready
            self._check_open()
            stop_if_requested()
            time.sleep(LOOK)

    def _worker_of(self, shard: int, avoid: Worker | None) -> Worker:
        """Who works on a shard, as soon as a worker is ready."""
        started, told = time.monotonic(), False
        while (worker := self._choose(shard, avoid)) is None:
            self._check_open()
            stop_if_requested()
            if not told and time.monotonic() - started > LONG_WAIT:
                notice(f"Shard {shard:05d} waits for a worker: {self.workers[0].description}.")
                told = True
            time.sleep(LOOK)
        return worker

    def _choose(self, shard: int, avoid: Worker | None) -> Worker | None:
        """Who works on a shard; a new one goes to the worker with the fewest. None if none can."""
        with self._lock:
            worker = self._shards.get(shard)
            if worker is not None and worker.is_ready and worker is not avoid:
                return worker
            if all(worker.is_lost for worker in self.workers):
                raise ShardError(
                    "no GPU is left: the process of each died again and again; see the log of the "
                    "system for why"
                )
            ready = [worker for worker in self.workers if worker.is_ready]
            others = [worker for worker in ready if worker is not avoid] or ready
            if not others:
                return None
            busy = Counter(self._shards.values())
            chosen = min(others, key=lambda worker: busy[worker])
            self._shards[shard] = chosen
            LOGGER.info("Shard %05d goes to %s", shard, chosen.description)
            return chosen

    def _release(self, shard: int) -> None:
        with self._lock:
            self._shards.pop(shard, None)

    def _lost(self, worker: Worker) -> None:
        """Forget which shards a worker worked on that has died."""
        with self._lock:
            self._shards = {
                shard: other for shard, other in self._shards.items() if other is not worker
            }


def _wait(worker: Worker, answer: Answer) -> Returned | Raised | None:
    """Wait for a report, and pass on a request to stop."""
    requested, told = stop_requested.get(), False
    while not answer.arrived.wait(LOOK):
        if requested is not None and requested.is_set() and not told:
            worker.stop()
            told = True
    return answer.report


def log(source: str, record: Logged) -> None:
    """Pass a record of a worker to the log of the run."""
    logging.getLogger(record.name).log(record.level, "%s: %s", source, record.message)


def _handle(event: Any) -> None:
    """What the flow does with an event of a worker; runs in the context of the call."""
    if isinstance(event, Noticed):
        notice(event.message)
    elif isinstance(event, RoundFinished):
        report_round(event)
    else:
        emit(event)
