"""What Prefect's own page shows of a run: its progress, its shards, its figures and pictures.

Everything here is for looking at. A server that takes no artifact is told of, and the run goes on.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.progress import Pace, reasons
from rudalle_lib.config import RunConfig
from rudalle_lib.records import RunManifest, ShardManifest
from rudalle_lib.run_page import render_run_page
from rudalle_lib.storage import Storage
from tasks.progress import Event, Planned, ShardFailed, ShardFinished, notice

ROWS = 500
"""Shards in the table, at most: all that failed come first, then those that finished last."""

EVERY = 2.0
"""Seconds between two updates of the progress, at least."""


class RunArtifacts:
    """The artifacts of a flow run; make it inside of the flow, and use it in the flow's thread."""

    def __init__(self, config: RunConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._slug = re.sub("[^a-z0-9]+", "-", config.name.lower()).strip("-") or "run"
        self._clock = clock
        self._pace = Pace(clock)
        self._todo = self._over = 0
        self._updated = clock()
        self._progress: UUID | None = None
        self._rows: list[dict[str, Any]] = []
        self._failed: list[dict[str, Any]] = []

    def note(self, event: Event) -> None:
        """Take in what happened to the plan or a shard; anything else is passed over."""
        if isinstance(event, Planned):
            self._todo = event.todo
            self._pace.plan(event.todo)
            self._tell(self._begin)
        elif isinstance(event, ShardFinished):
            self._rows = [*self._rows[1 - ROWS :], _row(event.manifest)]
            self._settle(event.manifest)
        elif isinstance(event, ShardFailed):
            row = {"shard": event.shard, "state": "failed", "what": event.message}
            self._failed = [*self._failed[1 - ROWS :], row]
            self._settle(None)

    def finish(self, run: RunManifest) -> None:
        """The run is reported: its shards as a table, its figures and pictures as a page."""
        if self._failed or self._rows:
            self._tell(self._write_table)
        self._tell(lambda: self._write_page(run))

    def _begin(self) -> None:
        if self._todo:
            found = create_progress_artifact(
                0.0, key=f"{self._slug}-progress", description="Shards of this run."
            )
            self._progress = found if isinstance(found, UUID) else None

    def _settle(self, manifest: ShardManifest | None) -> None:
        self._over += 1
        self._pace.finish(manifest)
        if self._over == self._todo or self._clock() - self._updated >= EVERY:
            self._updated = self._clock()
            self._tell(self._update)

    def _update(self) -> None:
        if self._progress is not None:
            share = 100.0 * self._over / max(self._todo, 1)
            said = f"{self._pace.rest()}; {self._pace.counts()}"
            update_progress_artifact(self._progress, share, said)

    def _write_table(self) -> None:
        rows = [*self._failed, *reversed(self._rows)][:ROWS]
        said = f"{self._over:,} of {self._todo:,} shards of this run"
        create_table_artifact(rows, key=f"{self._slug}-shards", description=said)

    def _write_page(self, run: RunManifest) -> None:
        page = render_run_page(Storage(self._config.output), self._config, run)
        create_markdown_artifact(page, key=f"{self._slug}-figures", description="What came of it.")

    def _tell(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:  # whatever it is, a dataset is worth more than its portrait
            notice(f"An artifact of this run could not be shown ({type(error).__name__}: {error}).")


def _row(manifest: ShardManifest) -> dict[str, Any]:
    artifacts = manifest.stages.values()
    return {
        "shard": manifest.index,
        "state": "published",
        "prompts": manifest.prompts,
        "images": manifest.images,
        "kept": manifest.kept,
        "set aside": reasons(manifest.rejected),
        "seconds": round(sum(artifact.seconds for artifact in artifacts), 1),
        "waiting": round(sum(artifact.waited for artifact in artifacts), 1),
    }
