"""Which checks of models have passed before, so that a command need not load torch to repeat them.

A mark is an empty file in the user's cache. Its name is a digest of everything that the check looks
at, so other files or settings have no mark. Without a cache that can be written, every check runs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rudalle_lib.digests import digest_of
from rudalle_lib.weights.digest_cache import cache_folder

VERSION = 1
"""Raised when checks find more than before: then all of them run again."""


def check_once(what: Any, check: Callable[[], None]) -> None:
    """Run a check, unless it has passed before.

    Args:
        what: everything that its result depends on, as plain JSON values.
        check: raises if something is wrong; then nothing is noted.
    """
    folder = cache_folder()
    mark = None if folder is None else folder / "passed" / digest_of([VERSION, what])
    with suppress(OSError):
        if mark is not None and mark.is_file():
            return
    check()
    with suppress(OSError):
        if mark is not None:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
