"""How long reading an input may take, and which local files may be read at all."""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

Result = TypeVar("Result")

READ_BUFFER = 2**20
"""Bytes in the buffer of an opened file."""

KERNEL_FOLDERS = ("/proc/", "/sys/", "/dev/")
"""Folders whose files the kernel makes while they are read; some never end."""

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device, whose content may be too large or never end"),
    (stat.S_ISBLK, "a device, whose content may be too large or never end"),
)


@dataclass(frozen=True)
class Reading:
    """Rules for reading an input from a file or URL.

    Attributes:
        connect_seconds: most time to connect to a server, including its name.
        read_seconds: most time between two parts of an answer.
        total_seconds: most time for one answer, or for 8 MiB of a longer one.
        private_hosts: whether a web URL may name a host in a private network.
        bounded: whether RUDALLE_ALLOW_INPUTS applies; not to what the person who runs names.
    """

    connect_seconds: float = 10.0
    read_seconds: float = 30.0
    total_seconds: float = 120.0
    private_hosts: bool = True
    bounded: bool = True

    def too_slow(self) -> TimeoutError:
        """The error of a server that takes too long."""
        return TimeoutError(
            errno.ETIMEDOUT,
            "the server did not answer in time (prompts.connect_seconds "
            f"{self.connect_seconds:g}, read_seconds {self.read_seconds:g}, total_seconds "
            f"{self.total_seconds:g})",
        )


TABLE = Reading()
"""Rules for prompt tables whose configuration is not known."""

ROWS = Reading(private_hosts=False)
"""Rules for what the rows of a table name."""

OWN = Reading(bounded=False)
"""Rules for files that the person who runs a command names."""


MAX_SILENCES = 3
"""Timeouts in a row after which a server is not asked any more for some time."""

SILENT_SECONDS = 600.0
"""How long such a server is not asked. Otherwise a table of thousands of rows takes days."""


class SilentServers:
    """Servers that did not answer in time; safe to use from several threads."""

    def __init__(self) -> None:
        """Start with none."""
        self._lock = threading.Lock()
        self._silences: dict[str, tuple[int, float]] = {}

    def check(self, server: str) -> None:
        """Raise at once what asking a silent server would raise after some time.

        Raises:
            TimeoutError: it has not answered several times in a row, the last time recently.
        """
        count, last = self._silences.get(server, (0, 0.0))
        if count >= MAX_SILENCES and time.monotonic() - last < SILENT_SECONDS:
            raise TimeoutError(
                errno.ETIMEDOUT,
                f"the server did not answer in time {count} times, and is not asked again for "
                f"{SILENT_SECONDS / 60:g} minutes",
            )

    def note(self, server: str, answered: bool) -> None:
        """Note whether a server answered."""
        with self._lock:
            if answered:
                self._silences.pop(server, None)
            else:
                count, _ = self._silences.get(server, (0, 0.0))
                self._silences[server] = (count + 1, time.monotonic())


def call_within(seconds: float, work: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function, and stop waiting for it after some time.

    It runs in a thread of its own, which is abandoned if it takes longer.

    Raises:
        TimeoutError: the function has not returned in time.
        BaseException: what the function raised.
    """
    outcome: list[Result] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            outcome.append(work(*arguments))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    return outcome[0]


class TimedFile(io.RawIOBase):
    """A remote file each of whose reads must end in time; after a timeout it cannot be used."""

    def __init__(self, file: BinaryIO, rules: Reading) -> None:
        """Wrap an open file, which is closed with this one."""
        self._file = file
        self._rules = rules

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As in `io`."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As in `io`."""
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        """As in `io`.

        Raises:
            TimeoutError: it takes longer than `total_seconds`.
        """
        try:
            data = call_within(self._rules.total_seconds, self._file.read, len(buffer))
        except TimeoutError:
            raise self._rules.too_slow() from None
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the wrapped file, too."""
        if not self.closed:
            self._file.close()
        super().close()


def open_regular(path: str) -> BinaryIO:
    """Open a local file for reading; it must be one with a content of its own.

    Raises:
        OSError: it is a device, pipe or socket, or made by the kernel; or it cannot be opened.
    """
    _check_regular(path, os.stat(path))  # before it is opened: that alone can move a device
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_regular(path, os.fstat(file))
        return os.fdopen(file, "rb", READ_BUFFER)
    except BaseException:
        os.close(file)
        raise


def _check_regular(path: str, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(path)
    kind = next((name for matches, name in _KINDS if matches(status.st_mode)), None)
    if kind is None and _is_made_by_the_kernel(path):
        kind = "made by the kernel"
    if kind is not None:
        raise OSError(errno.EINVAL, f"it is {kind}; expected a regular file")


def _is_made_by_the_kernel(path: str) -> bool:
    real = os.path.realpath(path)
    return real.startswith(KERNEL_FOLDERS) and not real.startswith("/dev/shm/")
