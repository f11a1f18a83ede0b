"""A process that runs the tasks of one GPU for the process of the flow.

Two decoders in one process would share Python's lock, and each of their steps starts hundreds of
operations from Python. So every GPU has a process. It lives as long as the run, keeps its networks,
and runs several tasks at a time in threads. `tasks.runtime.process_worker` starts it:
`main` gets the socket on which calls arrive, and events and results are sent. Processes of Ray run
calls in the same way (`tasks.runtime.ray_worker`).

Nothing of PyTorch or Prefect is imported before the first call, so that processes start quickly.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from rudalle_lib.errors import RudalleError

IDLE_SECONDS = 60.0
"""After so many seconds without a call a process returns unused memory to its GPU."""

BROKEN_EXIT = 70
"""Exit code of a process whose GPU does not compute any more."""


@dataclass(frozen=True)
class Call:
    """Run a task.

    Attributes:
        number: of the call.
        module: where the task is.
        name: of the task in it.
        parameters: its arguments by name.
    """

    number: int
    module: str
    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Stop:
    """Stop all tasks between two steps, and those that are still to come."""


@dataclass(frozen=True)
class Happened:
    """An event of a call, for the listener of the run."""

    number: int
    event: Any


@dataclass(frozen=True)
class Logged:
    """A record of a logger, for the log of the run."""

    name: str
    level: int
    message: str


@dataclass(frozen=True)
class Returned:
    """What a call has returned."""

    number: int
    result: Any


@dataclass(frozen=True)
class Raised:
    """What a call has raised."""

    number: int
    error: BaseException


Request = Call | Stop
Report = Happened | Logged | Returned | Raised


def main(descriptor: int) -> None:
    """Run calls until the other end of the socket is closed, which also ends calls in progress."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the process of the flow decides what happens
    worker = _Worker(Connection(descriptor))
    send_warnings(worker.send)
    try:
        worker.serve()
    except (EOFError, OSError):  # the run has ended
        pass
    finally:
        os._exit(0)


class _Worker:
    """One end of the socket, and the calls in progress."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._stop = threading.Event()
        self._calls: set[int] = set()

    def serve(self) -> None:
        """Receive requests; every call gets a thread."""
        while True:
            if not self._connection.poll(IDLE_SECONDS):
                if not self._calls:
                    free_memory_of_idle_process()
                continue
            request: Request = self._connection.recv()
            if isinstance(request, Stop):
                self._stop.set()
            else:
                self._calls.add(request.number)
                threading.Thread(target=copy_context().run, args=(self._run, request)).start()

    def send(self, report: Report) -> None:
        """Send a report; reports of several threads do not mix."""
        data = pickle.dumps(report)
        with self._sending:
            self._connection.send_bytes(data)

    def _run(self, call: Call) -> None:
        report = run_call(call, self.send, self._stop)
        self._calls.discard(call.number)
        self.send(report)


def run_call(
    call: Call, send: Callable[[Report], None], stop: threading.Event
) -> Returned | Raised:
    """Run a task in this thread; ends the process if its GPU does not compute any more.

    Args:
        call: names the task.
        send: sends events of the task to the flow.
        stop: is set when the task must stop between two steps.
    """
    from tasks.runtime.events import listener
    from tasks.runtime.stopping import stop_requested

    listener.set(lambda event: send(Happened(call.number, event)))
    stop_requested.set(stop)
    try:
        task = getattr(importlib.import_module(call.module), call.name)
        return Returned(call.number, task.fn(**call.parameters))
    except BaseException as error:
        if is_broken_device(error):
            logging.getLogger("rudalle_lib").error("A GPU failed: %s", error)
            os._exit(BROKEN_EXIT)
        return Raised(call.number, _portable(error))


def free_memory_of_idle_process() -> None:
    """Return unused memory to the GPU."""
    if "torch" in sys.modules:
        from rudalle_lib.runtime.memory import free_unused_memory

        free_unused_memory()


def send_warnings(send: Callable[[Logged], None]) -> None:
    """Send warnings and errors of our loggers to the log of the run."""
    logger = logging.getLogger("rudalle_lib")
    logger.addHandler(_ToTheFlow(send))
    logger.propagate = False  # Prefect's handlers would print it here, too


class _ToTheFlow(logging.Handler):
    """Sends records of warnings and errors to the process of the flow."""

    def __init__(self, send: Callable[[Logged], None]) -> None:
        super().__init__(logging.WARNING)
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        self._send(Logged(record.name, record.levelno, record.getMessage()))


OF_CUDA = (
    "cuda error:",  # PyTorch, and cuBLAS through it
    "triton error [cuda]:",
    "cudnn_status_execution_failed",
    "captures_underway",  # PyTorch's allocator, after a capture that was not ended
)
"""Parts of messages of errors that CUDA reports, whichever library asked for something first."""


def is_broken_device(error: BaseException) -> bool:
    """Whether an error means that CUDA does not work any more in this process.

    After an illegal access to memory or an uncorrectable error of it, every later call fails, too.
    Too little memory is no such error.
    """
    message = str(error).lower()
    of_cuda = type(error).__name__ == "AcceleratorError" or any(m in message for m in OF_CUDA)
    if not of_cuda or isinstance(error, RudalleError):
        return False
    from rudalle_lib.runtime.memory import is_out_of_memory  # imports torch

    return not is_out_of_memory(error)


def _portable(error: BaseException) -> BaseException:
    """An exception that can be sent, with its traceback as a note."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
