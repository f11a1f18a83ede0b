"""A run as one Markdown page: figures, embedded contact sheet, histogram and rejects."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from rudalle_lib.config.run import RunConfig
from rudalle_lib.report import run_page
from rudalle_lib.report.report import write_report
from rudalle_lib.report.run_page import browser_url, draw_histogram, render_run_page
from rudalle_lib.schema.records import ScoreSummary
from rudalle_lib.storage.storage import Storage
from tests.support.hand_made import plan_by_hand, publish_by_hand

STARTED = "2021-11-02T00:00:00+00:00"


def test_the_page_embeds_the_sheet_and_lists_figures_scores_and_rejects(
    storage: Storage, config: RunConfig
) -> None:
    run = write_report(storage, config, {}, 1, STARTED)
    assert run.scores is not None
    page = render_run_page(storage, config, run)
    assert page.startswith("# by hand\n") and "| Published images | 2 |" in page
    assert draw_histogram(run.scores) in page
    assert "## Rejected\n" in page and "| `not_in_best_k` | 4 |" in page
    found = re.search(r"\(data:image/webp;base64,([^)]+)\)", page)
    assert found is not None
    image = Image.open(io.BytesIO(base64.b64decode(found[1])))
    assert image.format == "WEBP" and image.width > 1000


def test_a_run_without_published_images_has_a_page(
    storage: Storage, config: RunConfig, tmp_path: Path
) -> None:
    strict = config.score.model_copy(update={"min_score": 0.99})
    config = config.model_copy(update={"score": strict})
    publish_by_hand(storage, config, plan_by_hand(config, tmp_path))
    page = render_run_page(storage, config, write_report(storage, config, {}, 1, STARTED))
    assert "No image was published." in page and "data:image" not in page


def test_no_further_shard_is_read_once_there_are_enough_images(
    storage: Storage, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_report(storage, config, {}, 1, STARTED)
    manifest = json.loads(storage.read_bytes("shards/00000.json"))
    manifest["metadata"]["path"] = "data/metadata/missing.parquet"
    storage.write_bytes("shards/00009.json", json.dumps({**manifest, "index": 9}).encode())
    monkeypatch.setattr(run_page, "MAX_CANDIDATES", 2)
    assert "data:image/webp" in render_run_page(storage, config, run)


def test_a_histogram_has_one_line_per_bin_with_a_bar_of_its_share() -> None:
    lines = draw_histogram(ScoreSummary(0.1, 0.2, 0.3, (8, 0, 1, 4))).splitlines()
    assert [line.split()[0] for line in lines] == ["0.100", "0.150", "0.200", "0.250"]
    assert [line.count("█") for line in lines] == [40, 0, 5, 20]
    assert [line.split()[-1] for line in lines] == ["8", "0", "1", "4"]


@pytest.mark.parametrize(
    ("url", "folder", "environment", "expected"),
    [
        ("/data/my run/a.html", False, {}, "file:///data/my%20run/a.html"),
        (
            "s3://bucket/a run/index.html", False, {},
            "https://s3.console.aws.amazon.com/s3/object/bucket?prefix=a%20run/index.html",
        ),
        (
            "s3://bucket/run", True, {},
            "https://s3.console.aws.amazon.com/s3/buckets/bucket?prefix=run/",
        ),
        (
            "s3://bucket/run/a.html", False, {"AWS_ENDPOINT_URL": "http://key:secret@host:9000/"},
            "http://host:9000/bucket/run/a.html",
        ),
        ("s3://bucket/run", True, {"AWS_ENDPOINT_URL_S3": "http://host"}, None),
        (
            "gs://bucket/run/a.html", False, {},
            "https://console.cloud.google.com/storage/browser/_details/bucket/run/a.html",
        ),
        (
            "gs://bucket/run", True, {},
            "https://console.cloud.google.com/storage/browser/bucket/run",
        ),
        ("https://host/run/a.html", False, {}, "https://host/run/a.html"),
        ("memory://run/a.html", False, {}, None),
    ],
)  # fmt: skip
def test_the_address_of_a_file_or_folder(
    url: str, folder: bool, environment: dict[str, str], expected: str | None
) -> None:
    assert browser_url(url, folder, environment) == expected
