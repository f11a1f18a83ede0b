"""The process from which tests fork others: it has imported what they need, so they start at once.

Python has one such process, so all tests of a process share it, and its modules.
"""

from __future__ import annotations

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")

_MODULES: list[str] = []


def preload(*modules: str) -> None:
    """Let the process import modules when it starts; must be called while tests are collected."""
    _MODULES.extend(module for module in modules if module not in _MODULES)
    CONTEXT.set_forkserver_preload(_MODULES)
