"""Where a dataset comes from that was rendered from the image tokens of another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Lineage:
    """The dataset whose image tokens another one shows.

    Attributes:
        source: its public URL.
        name, finished: of its last run; the time is ISO 8601.
        run: SHA-256 of its `run.json`.
        changes: settings that differ: the value there and the value here, by key.
    """

    source: str
    name: str
    finished: str
    run: str
    changes: Mapping[str, tuple[Any, Any]]
