"""The report of a run: whole, bounded, made again only when something has changed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rudalle_lib import report
from rudalle_lib.config import RunConfig
from rudalle_lib.errors import StorageError
from rudalle_lib.report import choose_for_sheet, current_report, write_report
from rudalle_lib.status import read_status
from rudalle_lib.storage import Storage
from tests.hand_made import NAMES, plan_by_hand, publish_by_hand
from tests.lib.test_shards import record

WEIGHTS = {stage: f"{stage} digest" for stage in NAMES}
PARTS = ("run.json", "README.md", "contact_sheet.png", "gallery/index.html")


@pytest.fixture
def config(output_url: str, storage: Storage, tmp_path: Path) -> RunConfig:
    """A run whose only shard is published."""
    config = RunConfig.model_validate(
        {"name": "by hand", "output": output_url, "score": {"keep_best": 1}}
    )
    publish_by_hand(storage, config, plan_by_hand(config, tmp_path))
    return config


def gallery(storage: Storage) -> dict[str, Any]:
    page = storage.read_bytes("gallery/index.html").decode()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return dict(json.loads(found[1]))


def test_every_part_is_written_and_tells_the_totals(storage: Storage, config: RunConfig) -> None:
    run = write_report(storage, config, WEIGHTS, 1, "2021-11-02T00:00:00+00:00")
    assert all(storage.exists(part) for part in PARTS)
    assert (run.totals.kept, run.totals.images, run.totals.rejected["empty_prompt"]) == (2, 8, 1)
    assert run.weights["demo-dalle"] == "generate digest"
    card = storage.read_bytes("README.md").decode()
    assert "2 images drawn from 4 prompts" in card and "0.500 / 0.500 / 0.500" in card
    data = gallery(storage)
    assert [item["source"] for item in data["published"]] == [
        "../data/images/00000/circle-000.png",
        "../data/images/00000/square-000.png",
    ]


def test_rejected_images_are_shown_with_their_score_and_a_small_picture(
    storage: Storage, config: RunConfig
) -> None:
    write_report(storage, config, WEIGHTS, 1, "")
    groups = {group["reason"]: group for group in gallery(storage)["rejected"]}
    assert set(groups) == {
        *("empty_prompt", "translation_failed", "too_long"),
        *("not_in_best_k", "decode_error"),
    }
    first = groups["not_in_best_k"]["items"][0]
    assert first["score"] == pytest.approx(0.1)
    assert first["source"].startswith("data:image/webp;base64,")
    assert groups["decode_error"]["items"][0]["source"] is None


def test_the_page_stays_small_however_much_there_is(
    storage: Storage, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "SHOWN_IMAGES", 1)
    monkeypatch.setattr(report, "SHOWN_REJECTS", 1)
    write_report(storage, config, WEIGHTS, 1, "")
    data = gallery(storage)
    assert (len(data["published"]), data["published_total"]) == (1, 2)
    assert sum(len(group["items"]) for group in data["rejected"]) == 2  # a prompt and an image
    assert data["rejected_total"] == 9


def test_without_stages_rejected_images_have_no_picture(
    storage: Storage, config: RunConfig
) -> None:
    for stage in ("score", "decode"):
        storage.delete(f"stages/{stage}/00000.parquet")
    write_report(storage, config, WEIGHTS, 1, "")
    groups = {group["reason"]: group for group in gallery(storage)["rejected"]}
    assert groups["not_in_best_k"]["items"][0]["source"] is None


def test_a_report_is_current_until_something_changes(storage: Storage, config: RunConfig) -> None:
    assert current_report(storage, config, 1) is None
    run = write_report(storage, config, WEIGHTS, 1, "")
    assert current_report(storage, config, 1) == run
    assert current_report(storage, config, 2) is None
    assert current_report(storage, config.model_copy(update={"name": "x"}), 1) is None
    storage.delete("shards/00000.json")
    assert current_report(storage, config, 1) is None


def test_a_run_that_keeps_nothing_has_a_report_without_a_contact_sheet(
    storage: Storage, config: RunConfig, tmp_path: Path
) -> None:
    write_report(storage, config, WEIGHTS, 1, "")
    strict = config.score.model_copy(update={"min_score": 0.99})
    config = config.model_copy(update={"score": strict})
    publish_by_hand(storage, config, plan_by_hand(config, tmp_path))
    run = write_report(storage, config, WEIGHTS, 1, "")
    assert run.totals.kept == 0
    assert not storage.exists("contact_sheet.png")
    assert "contact_sheet.png" not in storage.read_bytes("README.md").decode()


def test_an_encoder_of_image_prompts_is_among_the_weights(
    storage: Storage, config: RunConfig
) -> None:
    generate = config.generate.model_copy(update={"image_encoder": "vqgan-f8"})
    changed = config.model_copy(update={"generate": generate})
    run = write_report(storage, changed, {**WEIGHTS, "image_encoder": "other"}, 1, "")
    assert run.weights["vqgan-f8"] == "other"


def test_status_comes_from_storage_alone(storage: Storage, config: RunConfig) -> None:
    status = read_status(storage)
    assert (status.planned, status.totals.shards, status.run) == (1, 1, None)
    run = write_report(storage, config, WEIGHTS, 1, "")
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
