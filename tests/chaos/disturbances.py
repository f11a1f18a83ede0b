"""What a run does to itself in a test: it pauses at a change of its output, or notes its files.

Disturbances are in an environment variable of the run's process (`DISTURBANCE`), with semicolons
between them:

- `pause N`: before the N-th change of a local output the process stops itself with SIGSTOP.
- `kill N`: it kills itself there.
- `journal FILE`: every file that it writes, and every flush to disk, is a line of this file.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

DISTURBANCE = "CHAOS_DISTURBANCE"

CHANGES = ("replace", "rename", "link", "unlink", "remove", "rmdir")
"""The functions of `os` that change which files a folder holds."""

FLUSHED = ""
"""The line of a journal that says that everything before it is on disk."""


def disturb(disturbance: str, output: str) -> None:
    """Disturb this process from now on."""
    for part in disturbance.split(";"):
        kind, _, detail = part.partition(" ")
        if kind == "journal":
            _keep_journal(Path(detail), output)
        else:
            number = signal.SIGSTOP if kind == "pause" else signal.SIGKILL
            _send_at_change(number, int(detail), output)


def _send_at_change(number: int, at: int, output: str) -> None:
    """Send a signal to this process before the `at`-th change of a local output."""
    lock, changes = threading.Lock(), 0

    def count() -> None:
        nonlocal changes
        with lock:
            changes += 1
            reached = changes == at
        if reached:
            os.kill(os.getpid(), number)

    for name in CHANGES:
        _patch(name, output, count)


def _patch(name: str, output: str, before: Callable[[], None]) -> None:
    original = getattr(os, name)

    def changed(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(getattr(path, "path", path)).startswith(output):
            before()
        return original(path, *arguments, **options)

    setattr(os, name, changed)


def _keep_journal(journal: Path, output: str) -> None:
    from rudalle_lib.storage import local_files

    sync = local_files.sync

    def note(line: str) -> None:
        with journal.open("a") as file:
            file.write(line + "\n")

    def noting(original: Callable[..., None]) -> Callable[..., None]:
        def changed(source: Any, target: Any, **options: Any) -> None:
            original(source, target, **options)
            if str(target).startswith(output):
                note(str(target))

        return changed

    def synced(root: str) -> None:
        sync(root)
        note(FLUSHED)

    os.replace, os.link, local_files.sync = noting(os.replace), noting(os.link), synced
