"""The flows, under a name that no folder hides: what deployments name as their entry point.

Prefect looks for a flow in the working directory first, and many teams have folders `flows` and
`tasks` there. Nobody else has a package of our name, so a worker finds this module, which then
imports the packages that lie beside it. Nothing is imported before a flow is asked for.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from rudalle_lib.errors import ConfigError

MODULES = {
    "generate_dataset": "flows.generate_dataset",
    "rerender_dataset": "flows.generate_dataset",
    "generate_shards": "flows.generate_shards",
    "generate_on_workers": "flows.generate_shards",
    "fine_tune": "flows.training.fine_tune",
}
"""Where each flow is."""

ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds all our packages."""

PACKAGES = ("flows", "tasks")
"""Those whose names others have, too."""


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__} has no flow {name}: expected {', '.join(MODULES)}")
    for package in PACKAGES:
        _import_ours(package)
    return getattr(importlib.import_module(MODULES[name]), name)


def _import_ours(package: str) -> None:
    """Import a package of ours, whatever the working directory holds.

    Raises:
        ConfigError: another package of this name is in use in this process.
    """
    sys.path.insert(0, str(ROOT))
    try:
        found = importlib.import_module(package)
    finally:
        sys.path.remove(str(ROOT))
    places = [Path(place).resolve() for place in getattr(found, "__path__", ())]
    if ROOT / package not in places:
        place = ", ".join(map(str, places)) or found
        raise ConfigError(
            f"The package {package} of {place} was imported before that of rudalle-flows, which "
            "has the same name; run its flows in a process of their own."
        )
