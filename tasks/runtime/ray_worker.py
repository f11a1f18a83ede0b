"""The workers of a Ray cluster, for a `WorkerPool`: a long-lived actor per GPU.

An actor runs all stages of its shards, several at a time in threads, and keeps its networks. Ray
chooses its machine and shows it only its GPUs. An actor that cannot be placed yet waits, and no
shard waits for it. One that dies is replaced, possibly on another machine.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from tasks.runtime.worker_pool import MAX_DEATHS, Answer, Worker, log
from tasks.runtime.worker_process import (
    IDLE_SECONDS,
    Call,
    Happened,
    Logged,
    Raised,
    Report,
    Returned,
    free_memory_of_idle_process,
    run_call,
    send_warnings,
)

LOGGER = logging.getLogger(__name__)

POLL = 10.0
"""Seconds after which an actor answers that nothing has happened."""

SPARE_THREADS = 4
"""Threads of an actor besides those that report on calls."""

ENDING = 5.0
"""Seconds in which an actor must end after it was killed."""


class Actor:
    """What runs in a process of Ray."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._reports: dict[int, SimpleQueue[Report]] = {}
        self._begun = threading.Event()
        send_warnings(self._log)
        threading.Thread(target=self._free_when_idle, daemon=True).start()

    def place(self) -> str:
        """Where it runs; also shows that it has started."""
        return f"{socket.gethostname()} ({os.getpid()})"

    def begin(self, call: Call) -> None:
        """Start a task in a thread."""
        self._begun.set()
        self._reports[call.number] = SimpleQueue()
        threading.Thread(target=self._run, args=(call,), daemon=True).start()

    def reports(self, number: int) -> list[Report]:
        """Wait for reports on a call, and return those that are there; after `POLL` seconds none.

        Args:
            number: of the call; it is forgotten when its last report is returned.
        """
        queue, found = self._reports[number], list[Report]()
        with suppress(Empty):
            found.append(queue.get(timeout=POLL))
            while True:
                found.append(queue.get_nowait())
        if any(isinstance(report, Returned | Raised) for report in found):
            del self._reports[number]
        return found

    def stop(self) -> None:
        """Stop all tasks between two steps, and those that are still to come."""
        self._stop.set()

    def _run(self, call: Call) -> None:
        send = self._reports[call.number].put
        send(run_call(call, send, self._stop))

    def _log(self, record: Logged) -> None:
        """A record goes with the reports of any call; without one, it is only in Ray's log."""
        for queue in list(self._reports.values())[:1]:
            queue.put(record)

    def _free_when_idle(self) -> None:
        while True:
            if not self._begun.wait(IDLE_SECONDS) and not self._reports:
                free_memory_of_idle_process()
            self._begun.clear()


class RayWorker:
    """An actor, which is created at once and again after it died.

    Args:
        resources: what Ray reserves for it: `num_cpus` and `num_gpus`.
        calls: how many tasks it runs at the same time, at most.
    """

    def __init__(self, resources: Mapping[str, float], calls: int) -> None:
        self.on_death: Callable[[Worker], None] = lambda _: None
        self._options = {
            **resources, "max_concurrency": calls + SPARE_THREADS, "max_restarts": 0,
        }  # fmt: skip
        self._lock = threading.Lock()
        self._deaths = 0
        self._closed = False
        self._place: str | None = None
        self._actor: Any = None
        self._create()

    @property
    def is_ready(self) -> bool:
        """Whether its actor has been placed and has started."""
        return self._place is not None and not self._closed

    @property
    def is_lost(self) -> bool:
        """Whether actor after actor died."""
        return self._deaths >= MAX_DEATHS

    @property
    def description(self) -> str:
        """For logs: the machine and the process, or what Ray has not placed yet."""
        if (place := self._place) is not None:
            return f"the worker on {place}"
        needs = f"{self._options['num_cpus']:g} CPUs and {self._options['num_gpus']:g} GPUs"
        return f"Ray has not placed one that needs {needs}"

    def start(self, call: Call) -> Answer:
        """Start a task; its events reach the listener of the caller's context."""
        answer, actor = Answer(), self._actor
        if actor is None:  # it has just died for the last time
            answer.settle(None)
        else:
            follow = (actor, call, answer)
            threading.Thread(target=self._follow, args=follow, daemon=True).start()
        return answer

    def stop(self) -> None:
        """Ask the tasks in progress to stop."""
        with self._lock:
            if self._actor is not None:
                self._actor.stop.remote()

    def hang_up(self) -> None:
        """Kill the actor, whatever it does; no other one is created."""
        with self._lock:
            self._closed = True
            if self._actor is not None:
                ray.kill(self._actor)

    def wait_for_end(self) -> None:
        """Wait until the actor has ended."""
        if self._actor is not None:
            with suppress(RayError):
                ray.get(self._actor.place.remote(), timeout=ENDING)

    def _create(self) -> None:
        self._actor = ray.remote(Actor).options(**self._options).remote()
        threading.Thread(target=self._wait_for_place, args=(self._actor,), daemon=True).start()

    def _wait_for_place(self, actor: Any) -> None:
        try:
            place = ray.get(actor.place.remote())
        except RayError as error:
            self._died(actor, error)
            return
        with self._lock:
            if actor is self._actor:
                self._place = place

    def _follow(self, actor: Any, call: Call, answer: Answer) -> None:
        """Pass on what the actor reports on a call until it is over."""
        try:
            ray.get(actor.begin.remote(call))
            while not answer.arrived.is_set():
                for report in ray.get(actor.reports.remote(call.number)):
                    self._receive(report, answer)
        except RayTaskError as error:  # the call or a report could not be read
            answer.settle(Raised(call.number, error))
        except RayError as error:
            self._died(actor, error)
            answer.settle(None)
        except Exception as error:  # such as parameters that cannot be sent
            answer.settle(Raised(call.number, error))

    def _receive(self, report: Report, answer: Answer) -> None:
        if isinstance(report, Logged):
            log(self.description, report)
        elif isinstance(report, Happened):
            answer.happened(report.event)
        else:
            self._deaths = 0
            answer.settle(report)

    def _died(self, actor: Any, error: RayError) -> None:
        """Replace an actor that has died or cannot be reached."""
        with self._lock:
            if self._closed or actor is not self._actor:
                return
            LOGGER.warning("%s has died: %s", self.description, error)
            self._deaths += 1
            self._place = self._actor = None
            with suppress(RayError):
                ray.kill(actor)
            if not self.is_lost:
                self._create()
        self.on_death(self)
