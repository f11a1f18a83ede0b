"""Prefect artifacts of a run: progress, a table of shards, and a page with figures and images.

Artifacts are only for people. If the server rejects one, a notice is printed and the run continues.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.progress import RunRate
from rudalle_lib.config.run import RunConfig
from rudalle_lib.escaping import markdown_text
from rudalle_lib.humanize import reasons
from rudalle_lib.report.run_page import render_run_page
from rudalle_lib.report.usage import made_since
from rudalle_lib.schema.records import RunManifest, ShardManifest
from rudalle_lib.storage.storage import Storage
from tasks.runtime.events import Event, Planned, Selected, ShardFailed, ShardFinished, notice

MAX_ROWS = 500
"""Maximum number of shards in the table: failed shards first, then the latest finished ones."""

UPDATE_INTERVAL = 2.0
"""Minimum number of seconds between two updates of the progress artifact."""


class RunArtifacts:
    """The artifacts of a flow run. Create and use it only in the flow's thread."""

    def __init__(self, config: RunConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._slug = re.sub("[^a-z0-9]+", "-", config.name.lower()).strip("-") or "run"
        self._clock = clock
        self._begin = time.time()
        self._rate = RunRate(clock)
        self._todo = self._settled = 0
        self._last_update = clock()
        self._progress: UUID | None = None
        self._rows: list[dict[str, Any]] = []
        self._failed: list[ShardFailed] = []

    def note(self, event: Event) -> None:
        """Record an event of the plan or a shard; other events are ignored."""
        if isinstance(event, Planned):
            self._todo = event.todo
            self._rate.start(event.todo)
            self._try(self._create_progress)
        elif isinstance(event, Selected):
            self._todo = len(event.prompts)
            self._rate.resize(self._todo)
        elif isinstance(event, ShardFinished):
            row = _published(event.manifest, self._begin)
            self._rows = [*self._rows[1 - MAX_ROWS :], row]
            self._settle(event.manifest)
        elif isinstance(event, ShardFailed):
            self._failed = [*self._failed[1 - MAX_ROWS :], event]
            self._settle(None)

    def finish(self, run: RunManifest | None) -> None:
        """Publish the table of shards, and the page with figures and images if all is finished."""
        if self._failed or self._rows:
            self._try(self._write_table)
        if run is None:
            return
        self._try(lambda: self._write_page(run))
        if self._config.publish.compare_with is not None:
            self._try(self._write_comparison)

    def _create_progress(self) -> None:
        if self._todo:
            created = create_progress_artifact(
                0.0, key=f"{self._slug}-progress", description="Shards of this run."
            )
            self._progress = created if isinstance(created, UUID) else None

    def _settle(self, manifest: ShardManifest | None) -> None:
        self._settled += 1
        self._rate.record(manifest)
        due = self._clock() - self._last_update >= UPDATE_INTERVAL
        if due or self._settled == self._todo:
            self._last_update = self._clock()
            self._try(self._update_progress)

    def _update_progress(self) -> None:
        if self._progress is not None:
            percentage = 100.0 * self._settled / max(self._todo, 1)
            description = f"{self._rate.shard_summary()}; {self._rate.image_summary()}"
            update_progress_artifact(self._progress, percentage, description)

    def _write_table(self) -> None:
        failed = (_row(one.shard, "failed", error=one.message) for one in self._failed)
        rows = [*failed, *reversed(self._rows)][:MAX_ROWS]
        description = f"{self._settled:,} of {self._todo:,} shards of this run, failed ones first."
        create_table_artifact(rows, key=f"{self._slug}-shards", description=description)

    def _write_page(self, run: RunManifest) -> None:
        page = render_run_page(Storage(self._config.output), self._config, run)
        if self._failed:
            page = f"{_failed_shards(self._failed)}\n\n{page}"
        create_markdown_artifact(
            page, key=f"{self._slug}-figures", description="Result of this run."
        )

    def _write_comparison(self) -> None:
        from rudalle_lib.comparison.outputs import compare_outputs, find_outputs
        from rudalle_lib.comparison.rows import comparison_markdown

        earlier = str.__str__(self._config.publish.compare_with or "")  # with its query
        found = compare_outputs(*find_outputs(earlier, self._config.output))
        create_markdown_artifact(
            comparison_markdown(found),
            key=f"{self._slug}-comparison",
            description="What differs from an earlier dataset.",
        )

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:  # a run must not fail because of an artifact
            notice(f"Cannot publish a Prefect artifact ({type(error).__name__}: {error}).")


COLUMNS = (
    *("shard", "state", "prompts", "images", "kept", "rejected", "seconds", "seconds waiting"),
    "error",
)
"""Columns of the table of shards: Prefect shows those of its first row, so every row has all."""


def _row(shard: int, state: str, **values: Any) -> dict[str, Any]:
    known = {"shard": shard, "state": state, **values}
    return {column: known.get(column, "") for column in COLUMNS}


def _failed_shards(failed: Sequence[ShardFailed]) -> str:
    """A list of shards that failed, each with a link to its task and its log."""
    lines = ["# Failed shards", "", "Run again to make only these.", ""]
    for one in failed:
        name = f"shard {one.shard:05d}"
        link = f"[{name}](<{one.page}>)" if one.page else name
        lines.append(f"- {link}: {markdown_text(one.message)}")
    return "\n".join(lines)


def _published(manifest: ShardManifest, begin: float) -> dict[str, Any]:
    artifacts = made_since(manifest, begin).values()
    return _row(
        manifest.index,
        "published",
        prompts=manifest.prompts,
        images=manifest.images,
        kept=manifest.kept,
        rejected=reasons(manifest.rejected),
        seconds=round(sum(artifact.seconds for artifact in artifacts), 1),
        **{"seconds waiting": round(sum(artifact.waited for artifact in artifacts), 1)},
    )
