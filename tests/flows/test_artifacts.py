"""The Prefect artifacts of a run: progress, shards, figures, histogram and images."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from PIL import Image

from rudalle_lib.dataset.manifests import (
    read_run_manifest,
    require_run_manifest,
    write_run_manifest,
)
from rudalle_lib.errors import ShardError
from rudalle_lib.escaping import markdown_text
from rudalle_lib.report.run_page import draw_histogram
from rudalle_lib.storage.storage import Storage
from tasks.runtime.events import Event, Noticed, listener
from tests.support.finished_run import finished_below
from tests.support.tiny_run import block_stage, configure

pytestmark = pytest.mark.usefixtures("prefect_server")


def latest(key: str) -> Any:
    """Return the newest artifact with a key from the server."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactCollectionFilter
    from prefect.client.schemas.filters import ArtifactCollectionFilterKey as Key

    with get_client(sync_client=True) as client:
        (found,) = client.read_latest_artifacts(
            artifact_filter=ArtifactCollectionFilter(key=Key(any_=[key]))
        )
    return found


@pytest.fixture(scope="module")
def finished(
    prefect_server: None, settings: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A run in which one of three shards fails."""
    from flows.generate_dataset import generate_dataset

    out = tmp_path_factory.mktemp("run") / "out"
    runtime = {"devices": "cpu", "threads": 1, "price_per_device_hour": 2.0}
    config = configure(settings, out, name="Tiny №1", runtime=runtime)
    block_stage(config, "decode", 1)
    lines.clear()
    for logger in ("prefect.task_runs", "prefect.flow_runs"):
        logging.getLogger(logger).addHandler(_Collect())
    with pytest.raises(ShardError):
        generate_dataset(config)
    yield out


lines: list[tuple[int, str]] = []
"""Levels and texts of what the run has logged."""


class _Collect(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        lines.append((record.levelno, record.getMessage()))


def test_every_task_logs_one_line_and_none_only_that_it_has_completed(finished: Path) -> None:
    told = [text for level, text in lines if level == logging.INFO]
    of_tasks = [text for text in told if re.match(r"[a-z]+ \d{5}: ", text)]
    assert not [text for text in told if "hook" in text or text.startswith("Finished in state C")]
    # Seven stages of two shards, less the cutout, and two stages of the failed one.
    assert len(of_tasks) == 2 * 6 + 2
    (decoded,) = [text for text in of_tasks if text.startswith("decode 00000")]
    assert re.fullmatch(r"decode 00000: \d+ candidates in .* s, [\d.,]+ per second.*", decoded)
    (published,) = [text for text in of_tasks if text.startswith("publish 00000")]
    assert "published" in published and "rejected" in published
    assert "image.png" not in published and [level for level, _ in lines if level > logging.INFO]


def test_a_name_that_a_user_gave_is_kept() -> None:
    from flows.generate_dataset import GENERATED_NAME

    assert GENERATED_NAME.fullmatch("polar-bullfrog")
    for name in ("threshold 0.3", "nightly-2", "v2", "Test-run", ""):
        assert not GENERATED_NAME.fullmatch(name)


def test_the_progress_ends_with_all_shards(finished: Path) -> None:
    artifact = latest("tiny-1-progress")
    assert artifact.type == "progress" and float(artifact.data) == 100
    assert artifact.description.startswith("3 of 3 shards")
    assert artifact.flow_run_id is not None


def test_the_table_has_every_shard_with_the_failed_one_first(finished: Path) -> None:
    rows = json.loads(latest("tiny-1-shards").data)
    assert [row["state"] for row in rows] == ["failed", "published", "published"]
    assert rows[0]["shard"] == 1 and rows[0]["error"].startswith("decode (rows 4 to 5 of ")
    assert all(list(row) == list(rows[0]) for row in rows) and "images" in rows[0]
    assert {row["shard"] for row in rows[1:]} == {0, 2}
    assert all(row["images"] >= row["kept"] > 0 and row["seconds"] > 0 for row in rows[1:])


def test_the_page_shows_figures_cost_histogram_and_images(finished: Path) -> None:
    page = latest("tiny-1-figures").data
    run = read_run_manifest(Storage(str(finished)))
    assert run is not None and run.scores is not None and run.usage.cost is not None
    assert f"| Published images | {run.totals.kept} |" in page
    assert "| ... per published image |" in page and "idle share of 1 device |" in page
    assert draw_histogram(run.scores) in page
    encoded = re.search(r"\(data:image/webp;base64,([^)]+)\)", page)
    assert encoded is not None
    image = Image.open(io.BytesIO(base64.b64decode(encoded[1])))
    assert image.format == "WEBP" and image.width > 1000
    assert "| `not_in_best_k` |" in page
    gallery = markdown_text(f"{finished}/gallery/index.html")
    assert f"Gallery: [{gallery}](<file://{finished}/gallery/index.html>)" in page


def test_the_page_begins_with_the_failed_shards_and_links_to_their_tasks(finished: Path) -> None:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    head, link, *_ = [line for line in latest("tiny-1-figures").data.splitlines() if line][::2]
    assert head == "# Failed shards"
    found = re.fullmatch(
        r"- \[shard 00001\]\(<http.*/runs/task-run/([0-9a-f-]{36})>\): decode \(rows 4 to 5 of .*",
        link,
    )
    assert found is not None, link
    deadline = time.monotonic() + 60  # a server stores tasks some time after they have ended
    with get_client(sync_client=True) as client:
        while True:
            try:
                task = client.read_task_run(UUID(found[1]))
            except ObjectNotFound:
                assert time.monotonic() < deadline
                time.sleep(0.5)
            else:
                break
    assert task.name == "decode 00001"


def test_an_artifact_that_cannot_be_made_is_a_notice(finished: Path) -> None:
    from flows.artifacts import RunArtifacts
    from rudalle_lib.config.run import RunConfig

    run = read_run_manifest(Storage(str(finished)))
    assert run is not None
    elsewhere = RunConfig(name="tiny", output=str(finished))
    image = next((finished / "data" / "images").rglob("*.png"))
    content = image.read_bytes()
    image.unlink()
    events: list[Event] = []
    token = listener.set(events.append)
    try:
        RunArtifacts(elsewhere).finish(run)
    finally:
        listener.reset(token)
        image.write_bytes(content)
    (noticed,) = events
    assert isinstance(noticed, Noticed) and "Cannot publish a Prefect artifact" in noticed.message


def test_a_run_is_compared_with_the_one_before(tmp_path: Path) -> None:
    from prefect import flow

    from flows.artifacts import RunArtifacts

    made = finished_below(tmp_path)
    for day in (1, 2):
        copy = Storage(str(shutil.copytree(made.output, tmp_path / f"day-{day}")))
        run = require_run_manifest(copy)
        write_run_manifest(copy, replace(run, finished=f"2026-07-0{day}"))
    publish = made.publish.model_copy(update={"compare_with": str(tmp_path / "day-*")})
    output = str(tmp_path / "day-2")
    config = made.model_copy(update={"output": output, "publish": publish, "name": "days"})

    @flow(name="days")
    def finish_days() -> None:
        RunArtifacts(config).finish(require_run_manifest(Storage(output)))

    finish_days()
    page = latest("days-comparison").data
    assert "| Published images | 8 | 8 |  |" in page and "KS 0.000" in page
