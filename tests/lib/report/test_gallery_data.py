"""The gallery of an output: which entries it shows, and the files it consists of."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image

from rudalle_lib.config.run import RunConfig
from rudalle_lib.report import gallery_data
from rudalle_lib.report.gallery_data import as_data_uri
from rudalle_lib.report.report import write_report
from rudalle_lib.storage.storage import Storage
from tests.support.gallery_pages import gallery_rows, page_data
from tests.support.hand_made import NAMES

WEIGHTS = {stage: f"{stage} digest" for stage in NAMES}
STARTED = "2021-11-02T00:00:00+00:00"


def test_published_images_are_linked_relative_to_the_page(
    storage: Storage, config: RunConfig
) -> None:
    write_report(storage, config, WEIGHTS, 1, STARTED)
    page = page_data(storage.read_bytes("gallery/index.html").decode())
    assert page["chunks"] == ["data/00000.js"]
    published = [row for row in gallery_rows(storage) if "reason" not in row]
    paths = [path for path in storage.list("data/images") if path.endswith(".png")]
    assert [row["id"] for row in published] == ["circle-000", "square-000"]
    assert [row["source"] for row in published] == [f"../{path}" for path in sorted(paths)]
    assert [row["columns"] for row in published] == [{"theme": "a"}, {"theme": "b"}]
    assert not any("theme" in row["details"] for row in published)


def test_rejects_are_shown_with_reason_score_seed_and_thumbnail(
    storage: Storage, config: RunConfig
) -> None:
    write_report(storage, config, WEIGHTS, 1, STARTED)
    rejects: dict[str, list[dict[str, Any]]] = {}
    for row in gallery_rows(storage):
        rejects.setdefault(row.get("reason", "published"), []).append(row)
    assert set(rejects) == {
        *("published", "empty_prompt", "translation_failed", "too_long"),
        *("not_in_best_k", "decode_error"),
    }
    first = rejects["not_in_best_k"][0]
    assert first["score"] == pytest.approx(0.1)
    assert first["seed"] == str(2**62 + 1)
    path = first["thumb"].removeprefix("../")
    with Image.open(io.BytesIO(storage.read_bytes(path))) as thumbnail:
        assert thumbnail.format == "WEBP"
    assert storage.list("gallery/thumbnails") == sorted(
        row["thumb"].removeprefix("../") for row in rejects["not_in_best_k"]
    )
    assert first["details"]["rank"] == "3" and first["details"]["top_p"] == "0.9"
    assert not {"source", "thumb"} & set(rejects["decode_error"][0])


def test_the_number_of_entries_is_bounded(
    storage: Storage, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery_data, "MAX_IMAGES", 1)
    monkeypatch.setattr(gallery_data, "MAX_REJECTS", 1)
    run = write_report(storage, config, WEIGHTS, 1, STARTED)
    kinds = [
        "published" if "reason" not in row else "image" if "id" in row else "prompt"
        for row in gallery_rows(storage)
    ]
    assert sorted(kinds) == ["image", "prompt", "published"]
    page = page_data(storage.read_bytes("gallery/index.html").decode())
    assert page["totals"] == {k: v for k, v in run.totals.rejected.items() if v}


def test_chunks_of_an_earlier_larger_gallery_are_deleted(
    storage: Storage, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery_data, "CHUNK_SIZE", 4)
    write_report(storage, config, WEIGHTS, 1, STARTED)
    chunks = storage.list("gallery/data")
    assert len(chunks) == 3
    assert len(gallery_rows(storage)) == 11
    monkeypatch.undo()
    write_report(storage, config, WEIGHTS, 1, STARTED)
    assert storage.list("gallery/data") == chunks[:1]


def test_without_stages_rejected_images_have_no_thumbnail(
    storage: Storage, config: RunConfig
) -> None:
    for stage in ("score", "decode", "generate"):
        for path in storage.list(f"stages/{stage}"):
            storage.delete(path)
    write_report(storage, config, WEIGHTS, 1, STARTED)
    rejected = [row for row in gallery_rows(storage) if row.get("reason") == "not_in_best_k"]
    assert rejected and not any({"thumb", "seed"} & set(row) for row in rejected)
    assert all("score" in row and row["columns"]["theme"] in "ab" for row in rejected)


def test_a_thumbnail_is_a_small_webp_of_the_same_shape() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (640, 320), "#D42A1E").save(buffer, "PNG")
    head, _, content = as_data_uri(buffer.getvalue()).partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert head == "data:image/webp;base64"
    assert (image.format, image.size) == ("WEBP", (160, 80))
