"""Ends the program in time after a signal, whatever it is doing.

Python runs signal handlers only in the main thread, and only between two bytecodes. So a main
thread that waits in C code, or that retries a request to a dead server for minutes, ignores Ctrl-C
and SIGTERM. The watchdog is a thread that sees every signal at once (`signal.set_wakeup_fd`):

- After the first signal the program has `GRACE` seconds to stop its work, free its lease and end.
- After that, or at a second signal, the watchdog prints the sentence and ends the process. Another
  run on this machine can then take over the lease at once, because its process is gone; on other
  machines it has to expire.

It is installed by the program `rudalle-flows`, and in the processes in which Prefect executes flow
runs. A process that only imports this package is left alone.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NamedTuple

GRACE = 12.0
"""Seconds between a signal and the end of the process. Supervisors wait longer before they send
SIGKILL: docker 10 s by default, systemd 90 s, Kubernetes 30 s."""

REPEAT = 0.3
"""Signals within this many seconds of the first count as the same one: `timeout` and some
supervisors signal a process and also its group."""

FLOW_RUN_GRACE = 9.0
"""The same for a process that executes a flow run; `serve` waits for its end."""

RESUME_HINT = "Finished work is kept; run the same command again to continue."

PROGRAMS = ("rudalle-flows", "-m", "demo_server.py")
"""File names of our programs; it is "-m" while `python -m flows.cli` looks for the module."""

SHOW_CURSOR = b"\x1b[?25h\n"
"""What a terminal needs after progress bars that were cut off."""


class Ending(NamedTuple):
    """How the program ends: its exit code, and the sentence on stderr."""

    code: int
    message: str


ENDINGS = {
    signal.SIGINT: Ending(130, f"Interrupted. {RESUME_HINT}"),
    signal.SIGTERM: Ending(143, f"Terminated. {RESUME_HINT}"),
    signal.SIGHUP: Ending(129, f"The terminal was closed. {RESUME_HINT}"),
}
"""By signal; the codes are those of a process that the signal kills."""


class Watchdog:
    """Watches the signals of this process.

    Args:
        grace: Seconds between a signal and the end of the process.
        repeat_ends: Whether a second signal ends the process at once.
        leave: Ends the process with an exit code.
    """

    def __init__(
        self,
        grace: float = GRACE,
        repeat_ends: bool = True,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self._grace = grace
        self._repeat_ends = repeat_ends
        self._leave = leave
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._lock = threading.Lock()
        self._ending: Ending | None = None
        self._deadline: float | None = None
        self._first: float | None = None
        self._own_signals = 0
        self._silent = False
        self.cleanups: list[Callable[[], object]] = []

    @property
    def ending(self) -> Ending | None:
        """How the program ends, once a signal or `end_soon` has decided it."""
        return self._ending

    def install(self, set_handlers: bool = True) -> None:
        """Start to watch. Must be called in the main thread.

        Args:
            set_handlers: Also set the handlers for the time before and after a command, when there
                is nothing to stop.
        """
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        # A child must not report its signals to this process, from its first moment on.
        os.register_at_fork(
            before=_block_signals, after_in_parent=_unblock_signals, after_in_child=_forget_signals
        )
        atexit.register(self._leave_at_exit)  # registered first, so it is called last
        for number in ENDINGS if set_handlers else ():
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # nohup ignores SIGHUP
                signal.signal(number, self._end_now)
        with contextlib.suppress(RuntimeError):  # no threads: the command explains this
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def end_soon(self, ending: Ending) -> None:
        """End the program as if by SIGTERM, but with another code and sentence."""
        if self._ending is None:
            self._ending = ending
            os.kill(os.getpid(), signal.SIGTERM)

    def allow(self, seconds: float) -> None:
        """Give the work at least so much time to stop after a signal."""
        self._grace = max(self._grace, seconds)

    def own_signal(self) -> None:
        """Do not count the last signal, because this process has sent it to itself."""
        if self._first is not None and time.monotonic() - self._first >= REPEAT:
            self._own_signals += 1

    def forget(self) -> None:
        """Let the program end as if there had been no signal: it was only asked to stop showing."""
        self._ending = Ending(0, "")
        self._silent = True

    def be_silent(self) -> None:
        """Print nothing at the end, because the sentence has been printed."""
        self._silent = True

    def _end_now(self, number: int, _: FrameType | None) -> None:
        """The handler while no command is running: there is nothing to stop."""
        self._end(self._ending or ENDINGS[signal.Signals(number)])

    def _leave_at_exit(self) -> None:
        """Skip the rest of Python's shutdown, in which a signal has its default effect."""
        if self._ending is not None:
            self._end(self._ending)

    def _watch(self) -> None:
        count = 0
        while True:
            wait = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            readable, _, _ = select.select([self._reader], [], [], wait)
            if not readable:
                break
            numbers = [number for number in self._reader.recv(64) if number in set(ENDINGS)]
            if not numbers:
                continue
            now = time.monotonic()
            if self._first is None:
                self._first, self._deadline, count = now, now + self._grace, 1
                self._ending = self._ending or ENDINGS[signal.Signals(numbers[0])]
                continue
            if now - self._first < REPEAT:
                continue
            count += len(numbers) if self._repeat_ends else 0
            time.sleep(0.1)  # the handler in the main thread may call `own_signal`
            if count - self._own_signals > 1:
                break
        assert self._ending is not None
        self._end(self._ending)

    def _end(self, ending: Ending) -> None:
        with self._lock:  # never released: the process ends here
            for cleanup in self.cleanups:
                with contextlib.suppress(Exception):
                    cleanup()
            terminate_children()
            if not self._silent:
                _write(f"rudalle-flows: {ending.message}\n")
            self._leave(ending.code)


def _write(text: str) -> None:
    """Write to stderr, unless that would block: nobody may be reading it."""
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [2], [], 1.0)[1]:
            os.write(2, (SHOW_CURSOR if os.isatty(2) else b"") + text.encode())


def _block_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)


def _unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)


def _forget_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in ENDINGS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    _unblock_signals()


def terminate_children(seconds: float = 0.0) -> None:
    """Send SIGTERM to all children of this process, such as flow runs of `serve` (on Linux).

    Args:
        seconds: How long to wait for their end.
    """
    children = _children()
    for pid in children:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not children.isdisjoint(_children()):
        time.sleep(0.1)


def _children() -> set[int]:
    """Return the ids of the children of this process that have not ended."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/children") as children:
                found |= {int(pid) for pid in children.read().split()}
    return {pid for pid in found if not _has_ended(pid)}


def _has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to notice its end."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


watchdog: Watchdog | None = None
"""The watchdog of this process, if it has one."""


def install_in_program() -> None:
    """Install a watchdog if this process runs the command line."""
    global watchdog
    if watchdog is None and _program() in PROGRAMS:
        watchdog = Watchdog()
        watchdog.install()


def allow_time(seconds: float) -> None:
    """Give the work of this process at least so much time to stop after a signal."""
    if watchdog is not None:
        watchdog.allow(seconds)


def install_in_flow_run() -> None:
    """Install a watchdog if this process executes one flow run for `serve` or a worker.

    The process also gets a session of its own: signals of a terminal reach it only through
    `serve`, which then waits for its end. Two signals at once would stop it from reporting that.
    """
    global watchdog
    in_main_thread = threading.current_thread() is threading.main_thread()
    if watchdog is None and in_main_thread and _program() == "engine.py":
        with contextlib.suppress(PermissionError):  # it has one already
            os.setsid()
        watchdog = Watchdog(FLOW_RUN_GRACE, repeat_ends=False)
        watchdog.install(set_handlers=False)


def _program() -> str:
    """Return the file name of the program that this process runs.

    It is empty in children of multiprocessing, which copy `sys.argv`.
    """
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        return ""
    return os.path.basename(sys.argv[0]) if sys.argv else ""
