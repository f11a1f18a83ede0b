"""Guards: a check right before a file below a folder is created, replaced or deleted.

The holder of an output's lease (`dataset.lease`) sets one, so that a process that was paused writes
nothing after another one has taken over.

A request can still arrive after that, if the process is paused between the check and sending it. So
files whose names are always the same are replaced on S3 only if they are what they were before the
check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rudalle_lib.storage.errors import is_conflict, is_unknown

MAX_CONDITIONAL = 50 * 2**20
"""Bytes of the largest file that s3fs is sure to write with one request, to which a condition
applies."""

_guards: dict[str, list[Callable[[], None]]] = {}


@contextmanager
def guarding(root: str, guard: Callable[[], None]) -> Iterator[None]:
    """Call a guard before every change below a folder that this process makes within the block.

    Args:
        root: the folder, as `Storage.url()` returns it.
        guard: raises an error if nothing may be changed.
    """
    guards = _guards.setdefault(root, [])
    guards.append(guard)
    try:
        yield
    finally:
        guards.remove(guard)


def check_guard(root: str) -> None:
    """Call the guard of a folder that was set last, if there is one."""
    if guards := _guards.get(root):
        guards[-1]()


def version_of(file_system: Any, path: str) -> str:
    """The entity tag of a file on S3; empty if there is no such file."""
    try:
        return str(file_system.info(path)["ETag"])
    except FileNotFoundError:
        return ""


def replace_version(
    file_system: Any, path: str, version: str, content: bytes, headers: Mapping[str, str]
) -> bool:
    """Write a file on S3 if it still has a version.

    Servers that do not know the condition, and files above `MAX_CONDITIONAL`, are written without.

    Returns:
        Whether it was written. False may also mean that it was, but the answer was lost and the
        request repeated.
    """
    condition = {"IfMatch": version} if version else {"IfNoneMatch": "*"}
    if len(content) <= MAX_CONDITIONAL:
        try:
            file_system.pipe_file(path, content, **headers, **condition)
        except OSError as error:
            if is_conflict(error):
                return False
            if not is_unknown(error):
                raise
        else:
            return True
    file_system.pipe_file(path, content, **headers)
    return True
