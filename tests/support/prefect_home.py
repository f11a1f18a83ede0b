"""A home of Prefect whose database has been set up, so that its server starts in half the time."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

from flows.embedded_server import DetachedServer
from tests.support.compiled import BUILD

PATIENCE = 240.0
"""Seconds that a busy machine may need to start a server."""


def make_prefect_home(folder: Path) -> Path:
    """Copy a home without runs to a folder that does not exist yet; returns the folder."""
    return Path(shutil.copytree(_template(), folder))


@cache
def _template() -> Path:
    """The home that a server of this version of Prefect sets up, once for all processes."""
    name = f"prefect-{version('prefect')}-{sys.implementation.cache_tag}"
    BUILD.mkdir(exist_ok=True)
    home = BUILD / name
    with (BUILD / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes start at the same time
        if not home.exists():
            partial = home.with_name(f"{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _set_up(partial)
            partial.rename(home)
    return home


def _set_up(home: Path) -> None:
    environment = {n: value for n, value in os.environ.items() if not n.startswith("PREFECT_")}
    analytics = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    server = DetachedServer(0, environment | analytics | {"PREFECT_HOME": str(home)}, print)
    try:
        server.wait_until_ready(PATIENCE)
    finally:
        server.process.stop(30)
