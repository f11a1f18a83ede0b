"""The report of a run: whole, bounded, made again only when something has changed."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import Any

import pytest

from rudalle_lib import gallery_files
from rudalle_lib.config import RunConfig
from rudalle_lib.errors import StorageError
from rudalle_lib.report import (
    choose_for_sheet,
    current_report,
    render_shared_gallery,
    write_report,
)
from rudalle_lib.status import read_status
from rudalle_lib.storage import Storage
from tests.hand_made import NAMES, plan_by_hand, publish_by_hand
from tests.lib.test_gallery import data_of, rows_of
from tests.lib.test_shards import record

WEIGHTS = {stage: f"{stage} digest" for stage in NAMES}
STARTED = "2021-11-02T00:00:00+00:00"
PARTS = ("run.json", "README.md", "contact_sheet.png", "gallery/index.html")


@pytest.fixture
def config(output_url: str, storage: Storage, tmp_path: Path) -> RunConfig:
    """A run whose only shard is published."""
    config = RunConfig.model_validate(
        {"name": "by hand", "output": output_url, "score": {"keep_best": 1}}
    )
    publish_by_hand(storage, config, plan_by_hand(config, tmp_path))
    return config


def rows_of_gallery(storage: Storage) -> list[dict[str, Any]]:
    chunks = [path for path in storage.list("gallery") if path.endswith(".js")]
    return [row for path in chunks for row in rows_of(storage.read_bytes(path).decode())]


def test_every_part_is_written_and_tells_the_totals(storage: Storage, config: RunConfig) -> None:
    run = write_report(storage, config, WEIGHTS, 1, STARTED)
    assert all(storage.exists(part) for part in PARTS)
    assert (run.totals.kept, run.totals.images, run.totals.rejected["empty_prompt"]) == (2, 8, 1)
    assert run.weights["demo-dalle"] == "generate digest"
    card = storage.read_bytes("README.md").decode()
    assert "2 images drawn from 4 prompts" in card and "0.500 / 0.500 / 0.500" in card
    assert data_of(storage.read_bytes("gallery/index.html").decode())["chunks"] == ["data/00000.js"]
    published = [row for row in rows_of_gallery(storage) if "reason" not in row]
    assert [row["source"] for row in published] == [
        "../data/images/00000/circle-000.png",
        "../data/images/00000/square-000.png",
    ]


def test_rejects_are_shown_with_reason_score_seed_and_a_small_picture(
    storage: Storage, config: RunConfig
) -> None:
    write_report(storage, config, WEIGHTS, 1, STARTED)
    rejects: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of_gallery(storage):
        rejects.setdefault(row.get("reason", "published"), []).append(row)
    assert set(rejects) == {
        *("published", "empty_prompt", "translation_failed", "too_long"),
        *("not_in_best_k", "decode_error"),
    }
    first = rejects["not_in_best_k"][0]
    assert first["score"] == pytest.approx(0.1)
    assert first["seed"] == str(2**62 + 1)
    assert first["source"].startswith("data:image/webp;base64,")
    assert first["details"]["rank"] == "3" and first["details"]["top_p"] == "0.9"
    assert "source" not in rejects["decode_error"][0]


def test_the_gallery_stays_small_however_much_there_is(
    storage: Storage, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery_files, "SHOWN_IMAGES", 1)
    monkeypatch.setattr(gallery_files, "SHOWN_REJECTS", 1)
    run = write_report(storage, config, WEIGHTS, 1, STARTED)
    kinds = [
        "published" if "reason" not in row else "image" if "id" in row else "prompt"
        for row in rows_of_gallery(storage)
    ]
    assert sorted(kinds) == ["image", "prompt", "published"]
    page = data_of(storage.read_bytes("gallery/index.html").decode())
    assert page["totals"] == {k: v for k, v in run.totals.rejected.items() if v}


def test_chunks_that_are_no_longer_needed_are_deleted(
    storage: Storage, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery_files, "CHUNK", 4)
    write_report(storage, config, WEIGHTS, 1, STARTED)
    chunks = storage.list("gallery/data")
    assert len(chunks) == 3
    assert len(rows_of_gallery(storage)) == 11
    monkeypatch.undo()
    write_report(storage, config, WEIGHTS, 1, STARTED)
    assert storage.list("gallery/data") == chunks[:1]


def test_without_stages_rejected_images_have_no_picture(
    storage: Storage, config: RunConfig
) -> None:
    for stage in ("score", "decode", "generate"):
        storage.delete(f"stages/{stage}/00000.parquet")
    write_report(storage, config, WEIGHTS, 1, STARTED)
    rejected = [row for row in rows_of_gallery(storage) if row.get("reason") == "not_in_best_k"]
    assert rejected and not any({"source", "score", "seed"} & set(row) for row in rejected)


def test_a_gallery_to_pass_on_is_one_page_with_whole_links(
    storage: Storage, config: RunConfig
) -> None:
    with pytest.raises(StorageError, match=r"no finished run .* expected run\.json"):
        render_shared_gallery(storage, 60)
    write_report(storage, config, WEIGHTS, 1, STARTED)
    data = data_of(render_shared_gallery(storage, 60))
    assert data["chunks"] == [] and len(data["rows"]) == 11
    links = [row["source"] for row in data["rows"] if "reason" not in row]
    with urllib.request.urlopen(links[0], timeout=10) as answer:
        assert answer.read() == storage.read_bytes("data/images/00000/circle-000.png")


def test_a_report_is_current_until_something_changes(storage: Storage, config: RunConfig) -> None:
    assert current_report(storage, config, 1) is None
    run = write_report(storage, config, WEIGHTS, 1, STARTED)
    assert current_report(storage, config, 1) == run
    assert current_report(storage, config, 2) is None
    assert current_report(storage, config.model_copy(update={"name": "x"}), 1) is None
    storage.delete("shards/00000.json")
    assert current_report(storage, config, 1) is None


def test_a_run_that_keeps_nothing_has_a_report_without_a_contact_sheet(
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


def test_an_encoder_of_image_prompts_is_among_the_weights(
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
