"""The terminal: everything that commands print passes through here.

While a command runs, `sys.stdout` and `sys.stderr` show control characters as escapes, so that no
prompt, file name or message of another library controls the terminal. Only our own consoles
(`flows/console.py`) colour text and move the cursor. URLs are shown without passwords and
signatures, and secret variables as stars, in tracebacks, too.

Characters that the terminal's encoding lacks are replaced. When the reader is gone (`| head`, a
closed window), output is dropped, and the command works on and ends as it would have otherwise.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from typer.core import TyperGroup

from rudalle_lib.errors import StorageError
from rudalle_lib.escaping import encodable, safe_text
from rudalle_lib.storage.errors import mask_secrets

OUTPUT_FAILED = 2
"""Exit code if the output of a command cannot be written, for example because the disk is full."""

_RESTART = re.compile(r"(?:\r|\x1b\[A)*")
"""How progress bars of other libraries begin: at the start of this line or of the one above."""


class GuardedStream(io.TextIOBase):
    """A text stream that survives unknown characters and readers that are gone.

    It has no `buffer`, because bytes written there would not pass through it.
    """

    def __init__(self, stream: TextIO, required: bool) -> None:
        """Write to `stream`; a full disk is an error if `required`, otherwise output is lost."""
        self._stream = stream
        self._required = required
        self._gone = False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream."""
        return self._stream.encoding or "utf-8"

    def write(self, text: str) -> int:
        """Write a text; characters that the encoding lacks are replaced."""
        self._attempt(self._stream.write, encodable(text, self.encoding))
        return len(text)

    def flush(self) -> None:
        """Pass everything written so far to the reader."""
        self._attempt(self._stream.flush)

    def isatty(self) -> bool:
        """Whether this is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The file descriptor, for child processes."""
        return self._stream.fileno()

    def writable(self) -> bool:
        """Always true."""
        return True

    def close(self) -> None:
        """Do nothing: the stream belongs to the process."""

    def _attempt(self, action: Callable[..., object], *arguments: object) -> None:
        if self._gone:
            return
        try:
            action(*arguments)
        except OSError as error:
            self._gone = True
            _send_to_nowhere(self._stream)
            if self._required and not isinstance(error, BrokenPipeError):
                raise StorageError(
                    f"Cannot write the output of this command: {error.strerror or error}."
                ) from None


class SafeStream(GuardedStream):
    """A stream that shows control characters as escapes, and no secrets.

    `unfiltered` is the one below it.
    """

    def __init__(self, stream: TextIO, required: bool) -> None:
        """Write to `stream`; `required` as for `GuardedStream`."""
        self.unfiltered = GuardedStream(stream, required)
        super().__init__(cast(TextIO, self.unfiltered), required)

    def write(self, text: str) -> int:
        """Write a text with control characters shown as escapes, and without secrets."""
        start = _RESTART.match(text)
        kept = start.end() if start else 0
        self.unfiltered.write(text[:kept] + safe_text(mask_secrets(text[kept:])))
        return len(text)


@contextmanager
def safe_terminal() -> Iterator[None]:
    """Make the standard streams safe for the duration of the block, and flush them at its end.

    After an unexpected error they stay safe, because Python prints its traceback after the block.

    Raises:
        SystemExit: when the output cannot be written.
    """
    _open_missing_descriptors()
    before = sys.stdout, sys.stderr
    for name, required in (("stdout", True), ("stderr", False)):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller: `>&-`
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        setattr(sys, name, SafeStream(stream, required))
    try:
        yield
    except SystemExit:
        _flush()
        sys.stdout, sys.stderr = before
        raise
    _flush()
    sys.stdout, sys.stderr = before


class SafeGroup(TyperGroup):
    """A group of commands that runs with safe standard streams."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run a command."""
        with safe_terminal():
            return super().main(*arguments, **options)


def _flush() -> None:
    try:
        sys.stdout.flush()
    except StorageError as error:
        sys.stderr.write(f"rudalle-flows: {error}\n")
        raise SystemExit(OUTPUT_FAILED) from None


def _open_missing_descriptors() -> None:
    """Open closed standard descriptors, so that no other file gets their numbers."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _send_to_nowhere(stream: TextIO) -> None:
    """Let a broken stream end in the null device, or Python reports it once more when it exits."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
