"""Environment variables that must be set before Prefect and other packages are imported.

Importing `tasks` or `flows` sets them. Variables that are already set are not changed.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

TELEMETRY_OFF = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
"""Prefect prints a notice and writes a file as soon as it is imported with telemetry."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that are never reached through a proxy."""

Environment = MutableMapping[str, str]


def prepare(environment: Environment = os.environ) -> None:
    """Turn telemetry off, exempt loopback from proxies, and provide a home folder."""
    for name, value in TELEMETRY_OFF.items():
        environment.setdefault(name, value)
    exempt_loopback(environment)
    if environment is os.environ:
        provide_home()


def exempt_loopback(environment: Environment = os.environ) -> None:
    """Add loopback to `NO_PROXY` if there is a proxy: it cannot reach servers of this machine."""
    proxies = ("http_proxy", "https_proxy", "all_proxy")
    if not any(environment.get(name) or environment.get(name.upper()) for name in proxies):
        return
    exempt = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    hosts = [host.strip() for host in exempt.split(",") if host.strip()]
    if "*" not in hosts:
        hosts += [host for host in LOOPBACK if host not in hosts]
    environment["no_proxy"] = environment["NO_PROXY"] = ",".join(hosts)


def provide_home() -> None:
    """Set `HOME` to a private temporary folder if this user has no home, as in some containers."""
    try:
        Path.home()
    except RuntimeError:  # HOME is not set, and the user is not in the password database
        os.environ["HOME"] = str(private_folder(f"rudalle-flows-home-{os.getuid()}"))


def private_folder(name: str) -> Path:
    """Return a folder for temporary files that only this user can use.

    Args:
        name: Name of the folder. If somebody else has created it, another name is used.
    """
    folder = Path(tempfile.gettempdir()) / name
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        is_private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
        if is_private and found.st_uid == os.getuid():
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix=f"{name}-"))
