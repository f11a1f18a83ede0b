"""What Prefect keeps of a run to show: progress, shards, figures, histogram and pictures."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rudalle_lib.errors import ShardError
from rudalle_lib.manifest import read_run_manifest
from rudalle_lib.run_figures import ScoreSummary
from rudalle_lib.run_page import draw_histogram
from rudalle_lib.storage import Storage
from tasks.progress import Event, Noticed, listener
from tests.tiny_run import configure

pytestmark = pytest.mark.usefixtures("prefect_server")


def latest(key: str) -> Any:
    """The newest artifact of a key, as the server has it."""
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
    (out / "stages" / "decode" / "00001.parquet" / "in the way").mkdir(parents=True)
    runtime = {"devices": "cpu", "threads": 1, "price_per_device_hour": 2.0}
    with pytest.raises(ShardError):
        generate_dataset(configure(settings, out, name="Tiny №1", runtime=runtime))
    yield out


def test_the_progress_ends_with_all_shards_over(finished: Path) -> None:
    artifact = latest("tiny-1-progress")
    assert artifact.type == "progress" and float(artifact.data) == 100
    assert artifact.description.startswith("3 of 3 shards")
    assert artifact.flow_run_id is not None


def test_the_table_has_every_shard_the_failed_one_first(finished: Path) -> None:
    rows = json.loads(latest("tiny-1-shards").data)
    assert [row["state"] for row in rows] == ["failed", "published", "published"]
    assert rows[0]["shard"] == 1 and rows[0]["what"].startswith("decode: ")
    assert {row["shard"] for row in rows[1:]} == {0, 2}
    assert all(row["images"] >= row["kept"] > 0 and row["seconds"] > 0 for row in rows[1:])


def test_the_page_shows_figures_cost_histogram_and_pictures(finished: Path) -> None:
    page = latest("tiny-1-figures").data
    run = read_run_manifest(Storage(str(finished)))
    assert run is not None and run.scores is not None and run.usage.cost is not None
    assert f"| Published images | {run.totals.kept} |" in page
    assert "| ... per published image |" in page and "idle share of 1 device |" in page
    assert draw_histogram(run.scores) in page
    encoded = re.search(r"\(data:image/webp;base64,([^)]+)\)", page)
    assert encoded is not None
    picture = Image.open(io.BytesIO(base64.b64decode(encoded[1])))
    assert picture.format == "WEBP" and picture.width > 1000
    assert "| `not_in_best_k` |" in page


def test_a_page_that_cannot_be_made_is_told_of_and_fails_nothing(finished: Path) -> None:
    from flows.artifacts import RunArtifacts
    from rudalle_lib.config import RunConfig

    run = read_run_manifest(Storage(str(finished)))
    assert run is not None
    elsewhere = RunConfig(name="tiny", output=str(finished))
    picture = next((finished / "data" / "images").rglob("*.png"))
    content = picture.read_bytes()
    picture.unlink()
    said: list[Event] = []
    token = listener.set(said.append)
    try:
        RunArtifacts(elsewhere).finish(run)
    finally:
        listener.reset(token)
        picture.write_bytes(content)
    (noticed,) = said
    assert isinstance(noticed, Noticed) and "could not be shown" in noticed.message


def test_a_histogram_has_a_line_a_bin_as_long_as_its_share() -> None:
    lines = draw_histogram(ScoreSummary(0.1, 0.2, 0.3, (8, 0, 1, 4))).splitlines()
    assert [line.split()[0] for line in lines] == ["0.100", "0.150", "0.200", "0.250"]
    assert [line.count("█") for line in lines] == [40, 0, 5, 20]
    assert [line.split()[-1] for line in lines] == ["8", "0", "1", "4"]
