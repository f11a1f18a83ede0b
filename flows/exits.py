"""Exit codes of the commands, and the message on stderr if the code is not 0."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import typer

from flows import watchdog as watching
from flows.watchdog import ENDINGS, RESUME_HINT, Ending
from rudalle_lib.errors import (
    ConfigError,
    LeaseLostError,
    RudalleError,
    ShardError,
    TrainingError,
)
from rudalle_lib.escaping import indented

FAILED, BAD_INPUT = 1, 2
"""Exit codes of failed work, and of input with which no work could be started. Signals have the
codes in `watchdog.ENDINGS`."""

INTERRUPTED, TERMINATED = ENDINGS[signal.SIGINT].code, ENDINGS[signal.SIGTERM].code
"""Exit codes after SIGINT and SIGTERM."""

TOO_LITTLE_MEMORY = ("failed to map segment", "cannot allocate memory", "can't start new thread")
"""Parts of error messages of libraries that cannot be loaded, and of threads that cannot start."""


MIN_ADDRESS_SPACE = 2 << 30
"""Bytes of address space below which libraries end this process without an error."""

MIN_FILES = 64
"""Files that a process must be able to open at once."""

MIN_THREADS = 16
"""Number of threads that every command needs; a run needs about 50."""


class Terminated(BaseException):
    """Raised on SIGTERM and SIGHUP, like KeyboardInterrupt on SIGINT."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        self.number = signal.Signals(number)


@contextmanager
def translate_exit() -> Iterator[None]:
    """Turn expected errors into a message and an exit code; others keep their traceback.

    SIGINT, SIGTERM and SIGHUP are raised as exceptions inside the block. Inside a flow, Prefect
    first stops the run.
    """
    try:
        with _signals_raise():
            _check_limits()
            yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        _end(ENDINGS[signal.SIGINT])
    except Terminated as signalled:
        _end(ENDINGS[signalled.number])
    except Exception as error:
        _end_after_a_signal()  # an error while the work was being stopped
        ending = explain(error)
        if ending is None:
            raise
        fail(ending.message, ending.code)


@contextmanager
def leaving_quietly() -> Iterator[None]:
    """Let Ctrl-C end a block that only shows something: with code 0, and without a sentence.

    Raises:
        typer.Exit: after Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        if watching.watchdog is not None:
            watching.watchdog.forget()
        raise typer.Exit from None


def explain(error: Exception) -> Ending | None:
    """Return the exit code and message of an error, None for an error that nobody expected."""
    if isinstance(error, ShardError | LeaseLostError | TrainingError):
        return Ending(FAILED, str(error))
    if isinstance(error, RudalleError):
        return Ending(BAD_INPUT, str(error))
    if isinstance(error, MemoryError):
        return Ending(FAILED, f"Out of memory. {RESUME_HINT}")
    text = str(error).lower()
    could_not_load = isinstance(error, ImportError | OSError | RuntimeError)
    if could_not_load and any(part in text for part in TOO_LITTLE_MEMORY):
        return Ending(FAILED, f"{_limits()} ({error}). {RESUME_HINT}")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = error.filename or tempfile.gettempdir()
        return Ending(FAILED, f"The disk of {where} is full; free some space. {RESUME_HINT}")
    return None


def fail(message: str, code: int) -> NoReturn:
    """Print a message on stderr, and exit with a code.

    Raises:
        typer.Exit: always.
    """
    if sys.stdout is not None:
        sys.stdout.flush()
    end = "" if message.endswith((".", "!", "?")) else "."
    typer.echo(f"rudalle-flows: {indented(message)}{end}", err=True)
    raise typer.Exit(code)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Let signals raise exceptions in the block, unless they are ignored."""
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: _raise_terminated,
        signal.SIGHUP: _raise_terminated,
    }
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _raise_terminated(number: int, frame: FrameType | None) -> NoReturn:
    from_prefect = frame is not None and frame.f_code.co_name == "capture_sigterm"
    if from_prefect and watching.watchdog is not None:
        # Prefect's handler has stopped the flow, and now sends the signal again, for this handler.
        watching.watchdog.own_signal()
    raise Terminated(number)


def _end_after_a_signal() -> None:
    if watching.watchdog is not None and watching.watchdog.ending is not None:
        _end(watching.watchdog.ending)


def _end(ending: Ending) -> NoReturn:
    if watching.watchdog is not None:
        ending = watching.watchdog.ending or ending
        watching.watchdog.be_silent()
    fail(ending.message, ending.code)


def _check_limits() -> None:
    """Check the limits of this process before a library fails with a crash.

    Raises:
        ConfigError: there is too little address space, too few threads can be started or files
            opened, or the working directory is gone.
    """
    try:
        os.getcwd()  # torch cannot find its libraries without it
    except OSError as error:
        raise ConfigError(
            f"The working directory cannot be used ({error.strerror}): it was deleted, perhaps. "
            "Change to another one."
        ) from None
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and files < MIN_FILES:
        raise ConfigError(
            f"This process may open {files} files (ulimit -n); at least {MIN_FILES} are needed."
        )
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY and address_space < MIN_ADDRESS_SPACE:
        raise ConfigError(
            f"This process may use {address_space / 2**30:.1f} GiB of address space (ulimit -v); "
            f"at least {MIN_ADDRESS_SPACE / 2**30:.0f} GiB are needed, and 5 GiB for the demo."
        )
    end = threading.Event()
    threads = [threading.Thread(target=end.wait) for _ in range(MIN_THREADS)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError:
        raise ConfigError(
            f"{_limits()}: not even {MIN_THREADS} threads can be started. Raise ulimit -u, or the "
            "limit on processes of the container (pids.max)."
        ) from None
    finally:
        end.set()


def _limits() -> str:
    """Say which limits of this process may be too low."""
    limits = [
        f"{name} is {limit:,} {unit}"
        for name, number, unit in (
            ("address space (ulimit -v)", resource.RLIMIT_AS, "bytes"),
            ("processes and threads (ulimit -u)", resource.RLIMIT_NPROC, ""),
        )
        if (limit := resource.getrlimit(number)[0]) != resource.RLIM_INFINITY
    ]
    found = f": {', '.join(limits)}".replace(" ,", ",").rstrip() if limits else ""
    return f"This process cannot get the memory or threads that it needs{found}"
