"""The processes of a machine's GPUs, for a `WorkerPool`.

A process is started with the first call, and again after it died. A GPU whose process dies again
and again is left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tasks.runtime.job import Job
from tasks.runtime.worker_pool import MAX_DEATHS, Answer, Worker, WorkerPool, log
from tasks.runtime.worker_process import Call, Happened, Logged, Report, Stop

LOGGER = logging.getLogger(__name__)

ENDING = 5.0
"""Seconds in which a process must end after its socket was closed."""

CODE = "import sys; sys.path[:0] = {path!r}; from tasks.runtime.worker_process import main; main(0)"


def process_pool(devices: Sequence[str], api: str | None = None) -> WorkerPool:
    """A pool with a process per device.

    Args:
        devices: names of the devices, such as "cuda:1"; a device may occur several times.
        api: URL of the Prefect server whose limits tasks keep, if the environment does not name it.
    """
    environment = {} if api is None else {"PREFECT_API_URL": api}
    if "OMP_NUM_THREADS" not in os.environ:  # the processes share the cores
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // len(devices)))
    return WorkerPool([ProcessWorker(device, environment) for device in devices])


class ProcessWorker:
    """A device and its process, which is started with the first call and again after it died.

    Args:
        device: its name.
        environment: variables of the process, besides those of this one.
    """

    def __init__(self, device: str, environment: Mapping[str, str]) -> None:
        self.device = device
        self.on_death: Callable[[Worker], None] = lambda _: None
        self._environment = environment
        self._lock = threading.Lock()
        self._answers: dict[int, Answer] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._deaths = 0
        self._closed = False

    @property
    def is_ready(self) -> bool:
        """Whether it may be given work."""
        return not (self._closed or self.is_lost)

    @property
    def is_lost(self) -> bool:
        """Whether the device is left out."""
        return self._deaths >= MAX_DEATHS

    @property
    def description(self) -> str:
        """For logs: the device and its process."""
        process = self._process
        return f"the process of {self.device}" + (f" ({process.pid})" if process else "")

    @property
    def pid(self) -> int | None:
        """The number of the process, if it has been started."""
        return None if self._process is None else self._process.pid

    def start(self, call: Call) -> Answer:
        """Start a task on the device; its events reach the listener of the caller's context."""
        parameters = _on_device(call.parameters, self.device)
        answer = Answer()
        with self._lock:
            self._answers[call.number] = answer
            try:
                self._open().send(dataclasses.replace(call, parameters=parameters))
            except OSError:  # the process is dying, or the run has ended
                self._answers.pop(call.number, None)
                answer.settle(None)
        return answer

    def stop(self) -> None:
        """Ask the tasks in progress to stop."""
        with self._lock, contextlib.suppress(OSError):
            if self._connection is not None:
                self._connection.send(Stop())

    def hang_up(self) -> None:
        """Ask the process to end, whatever it does; no other one is started."""
        with self._lock:
            self._closed, connection = True, self._connection
            if connection is None:
                return
            with contextlib.suppress(OSError):
                end = socket.socket(fileno=os.dup(connection.fileno()))
                with end:
                    end.shutdown(socket.SHUT_RDWR)  # wakes both processes, unlike closing it

    def wait_for_end(self) -> None:
        """Wait until the process has ended; one that does not is killed."""
        if self._process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(ENDING)
        self._process.kill()
        self._process.wait()

    def _open(self) -> Connection:
        """The connection to the process, which is started if there is none."""
        if self._connection is not None:
            return self._connection
        if self._closed:
            raise BrokenPipeError("the run has ended")
        own, other = socket.socketpair()
        path = [str(Path(__file__).parents[2]), *filter(None, sys.path)]
        with other, _blocked_signals():
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", CODE.format(path=path)],
                stdin=other.fileno(), stdout=subprocess.DEVNULL,
                env={**os.environ, **self._environment},
            )  # fmt: skip
        self._connection = Connection(own.detach())
        reader = threading.Thread(target=self._read, args=(self._process, self._connection))
        reader.daemon = True
        reader.start()
        return self._connection

    def _read(self, process: subprocess.Popen[bytes], connection: Connection) -> None:
        """Pass on what the process sends until it is gone."""
        try:
            while True:
                self._receive(connection.recv())
        except (EOFError, OSError):
            pass
        except Exception:  # what it has sent cannot be read
            LOGGER.exception("%s is ended", self.description)
            process.kill()
        process.wait()
        with self._lock:
            self._deaths += 0 if self._closed else 1
            self._connection = None
            connection.close()
            waiting, self._answers = self._answers, {}
        self.on_death(self)
        for answer in waiting.values():
            answer.settle(None)

    def _receive(self, report: Report) -> None:
        if isinstance(report, Logged):
            log(self.device, report)
        elif isinstance(report, Happened):
            answer = self._answers.get(report.number)
            if answer is not None:
                answer.happened(report.event)
        else:
            self._deaths = 0
            with self._lock:
                answer = self._answers.pop(report.number, None)
            if answer is not None:
                answer.settle(report)


def _on_device(parameters: Mapping[str, Any], device: str) -> dict[str, Any]:
    """The parameters of a task with a job that names one device."""
    job: Job = parameters["job"]
    runtime = job.runtime.model_copy(update={"devices": device})
    return {**parameters, "job": dataclasses.replace(job, runtime=runtime)}


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Start a child that never sees signals to the group, from its first moment on."""
    numbers = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
