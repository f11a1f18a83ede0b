"""The report of a run: complete, and rewritten only when something has changed."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

from rudalle_lib.config.run import RunConfig
from rudalle_lib.errors import StorageError
from rudalle_lib.pipeline.recorded_run import current_report
from rudalle_lib.pipeline.status import read_status
from rudalle_lib.report.report import choose_for_sheet, render_shared_gallery, write_report
from rudalle_lib.storage.storage import Storage
from tests.support.gallery_pages import page_data
from tests.support.hand_made import NAMES, plan_by_hand, publish_by_hand
from tests.support.image_records import record

WEIGHTS = {stage: f"{stage} digest" for stage in NAMES}
STARTED = "2021-11-02T00:00:00+00:00"
PARTS = ("run.json", "README.md", "contact_sheet.png", "gallery/index.html")


def test_every_part_is_written_with_the_totals(storage: Storage, config: RunConfig) -> None:
    run = write_report(storage, config, WEIGHTS, 1, STARTED)
    assert all(storage.exists(part) for part in PARTS)
    assert (run.totals.kept, run.totals.images, run.totals.rejected["empty_prompt"]) == (2, 8, 1)
    assert run.weights["demo-dalle"] == "generate digest"
    card = storage.read_bytes("README.md").decode()
    assert "2 images drawn from 4 prompts" in card and "0.500 / 0.500 / 0.500" in card


def test_a_shared_gallery_is_one_page_with_absolute_links(
    storage: Storage, config: RunConfig
) -> None:
    with pytest.raises(StorageError, match=r"no finished run .* expected run\.json"):
        render_shared_gallery(storage, 60)
    write_report(storage, config, WEIGHTS, 1, STARTED)
    data = page_data(render_shared_gallery(storage, 60))
    assert data["chunks"] == [] and len(data["rows"]) == 11
    links = [row["source"] for row in data["rows"] if "reason" not in row]
    with urllib.request.urlopen(links[0], timeout=10) as answer:
        (path,) = (path for path in storage.list("data") if path.endswith("circle-000.png"))
        assert answer.read() == storage.read_bytes(path)


def test_a_report_is_current_until_something_changes(storage: Storage, config: RunConfig) -> None:
    assert current_report(storage, config, 1) is None
    run = write_report(storage, config, WEIGHTS, 1, STARTED)
    assert current_report(storage, config, 1) == run
    assert current_report(storage, config, 2) is None
    assert current_report(storage, config.model_copy(update={"name": "x"}), 1) is None
    storage.delete("shards/00000.json")
    assert current_report(storage, config, 1) is None


def test_a_run_without_published_images_has_no_contact_sheet(
    storage: Storage, config: RunConfig, tmp_path: Path
) -> None:
    write_report(storage, config, WEIGHTS, 1, STARTED)
    strict = config.score.model_copy(update={"min_score": 0.99})
    config = config.model_copy(update={"score": strict})
    publish_by_hand(storage, config, plan_by_hand(config, tmp_path))
    run = write_report(storage, config, WEIGHTS, 1, STARTED)
    assert run.totals.kept == 0
    assert not storage.exists("contact_sheet.png")
    assert "contact_sheet.png" not in storage.read_bytes("README.md").decode()


def test_the_encoder_of_image_prompts_is_among_the_weights(
    storage: Storage, config: RunConfig
) -> None:
    generate = config.generate.model_copy(update={"image_encoder": "vqgan-f8"})
    changed = config.model_copy(update={"generate": generate})
    run = write_report(storage, changed, {**WEIGHTS, "image_encoder": "other"}, 1, STARTED)
    assert run.weights["vqgan-f8"] == "other"


def test_status_comes_from_storage_alone(storage: Storage, config: RunConfig) -> None:
    status = read_status(storage)
    assert (status.planned, status.totals.shards, status.run) == (1, 1, None)
    run = write_report(storage, config, WEIGHTS, 1, STARTED)
    assert read_status(storage).run == run


def test_a_folder_without_a_run_has_no_status(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="There is no run in"):
        read_status(Storage(str(tmp_path)))


def test_the_contact_sheet_prefers_the_best_of_every_prompt() -> None:
    records = [record(p, n, rank=n + 1) for p in "abc" for n in range(3)]
    assert [r.image_id for r in choose_for_sheet(records, 4)] == [
        *("a-000", "a-001", "b-000", "c-000")
    ]
    assert len(choose_for_sheet(records, 99)) == 9
