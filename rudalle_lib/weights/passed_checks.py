"""Which checks of models have passed before, so that a command need not load torch to repeat them.

A check is known by all that its result depends on, such as the digest of the files. Those of the
packaged models have passed before the package was made: `demo/weights/passed_checks.json` lists
them. For others a mark is left, an empty file in the user's cache. Other files or settings have no
mark. Without a cache that can be written, every check runs.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rudalle_lib.digests import digest_of
from rudalle_lib.weights.digest_cache import cache_folder
from rudalle_lib.weights.files import PACKAGED

VERSION = 2
"""Raised when checks find more than before: then all of them run again."""

PASSED = PACKAGED / "passed_checks.json"
"""Checks that the packaged models have passed; `python -m tools.check_demo_models` writes it."""


def check_once(what: Any, check: Callable[[], None]) -> None:
    """Run a check, unless it has passed before.

    Args:
        what: everything that its result depends on, as plain JSON values.
        check: raises if something is wrong; then nothing is noted.
    """
    digest = digest_of([VERSION, what])
    folder = cache_folder()
    mark = None if folder is None else folder / "passed" / digest
    if digest in _packaged():
        return
    with suppress(OSError):
        if mark is not None and mark.is_file():
            return
    check()
    with suppress(OSError):
        if mark is not None:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()


def packaged_checks(passed: list[Any]) -> str:
    """The content of `PASSED` for checks that have passed."""
    rows = ",\n".join(f"  {json.dumps(what)}" for what in passed)
    return f'{{"version": {VERSION}, "passed": [\n{rows}\n]}}\n'


@functools.cache
def _packaged() -> frozenset[str]:
    """Digests of the checks in `PASSED`; none if they were made by another version."""
    with suppress(OSError):
        known = json.loads(PASSED.read_text("utf-8"))
        if known["version"] == VERSION:
            return frozenset(digest_of([VERSION, what]) for what in known["passed"])
    return frozenset()
