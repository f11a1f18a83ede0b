"""Thumbnails are made once, only where they are needed, and go with their images."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from rudalle_lib.config.run import RunConfig
from rudalle_lib.derived import thumbnails
from rudalle_lib.derived.thumbnails import SIDE, make_thumbnail
from rudalle_lib.errors import ImageError
from rudalle_lib.report import gallery_data
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finish, finished_below, in_form
from tests.support.gallery_pages import gallery_rows

FOLDER = "gallery/thumbnails"
FORMS = ("files", "webdataset", "parquet")


def encoded(size: tuple[int, int], mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, "#D42A1E80" if mode == "RGBA" else "#D42A1E").save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((2048, 1024), (512, 256)),
        ((300, 2048), (75, 512)),
        ((512, 512), (512, 512)),
        ((8, 3), (8, 3)),
    ],
)
def test_large_images_become_small_and_small_ones_stay(
    size: tuple[int, int], shown: tuple[int, int]
) -> None:
    with Image.open(io.BytesIO(make_thumbnail(encoded(size)))) as image:
        assert (image.format, image.size) == ("WEBP", shown)
    assert SIDE == 512


def test_transparency_stays_and_what_is_no_image_is_an_error() -> None:
    with Image.open(io.BytesIO(make_thumbnail(encoded((600, 600), "RGBA")))) as image:
        assert image.mode == "RGBA"
    with pytest.raises(ImageError):
        make_thumbnail(b"no image")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run with two images of each prompt rejected."""
    return finished_below(tmp_path_factory.mktemp("thumbnails"))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_shows_small_images_and_a_second_report_makes_none(
    run: RunConfig, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery_data, "SIDE", 16)
    monkeypatch.setattr(thumbnails.make_thumbnail, "__defaults__", (16, 85))
    config = in_form(run, tmp_path / "out", format=form)
    finish(config)
    storage = Storage(config.output)
    rows = [row for row in gallery_rows(storage) if "id" in row]
    published = [row for row in rows if "reason" not in row]
    assert len(published) == 8 and all("thumb" in row for row in rows)
    assert all(("source" in row) == (form == "files") for row in published)
    shown = {row["thumb"].removeprefix("../") for row in rows}
    assert shown == set(storage.list(FOLDER))
    for path in shown:
        with Image.open(io.BytesIO(storage.read_bytes(path))) as image:
            assert max(image.size) <= 16
    monkeypatch.setattr(thumbnails, "make_thumbnail", None)  # would raise
    finish(config.model_copy(update={"name": "again"}))
    assert shown == set(storage.list(FOLDER))


def test_image_files_that_are_small_are_shown_as_they_are(run: RunConfig) -> None:
    rows = [row for row in gallery_rows(Storage(run.output)) if "id" in row]
    assert all(("thumb" in row) == ("reason" in row) for row in rows)


def test_thumbnails_go_with_their_images_and_with_the_gallery(
    run: RunConfig, tmp_path: Path
) -> None:
    config = in_form(run, tmp_path / "out", format="webdataset")
    finish(config)
    storage = Storage(config.output)
    before = set(storage.list(FOLDER))
    score = config.score.model_copy(update={"keep_best": 1})
    finish(config.model_copy(update={"score": score}))
    after = set(storage.list(FOLDER))
    assert after and after.isdisjoint(before)  # the shards are published anew
    finish(in_form(run, tmp_path / "out", format="webdataset", gallery=False))
    assert storage.list(FOLDER) == [] and not (tmp_path / "out" / FOLDER / "00000").exists()


def test_an_image_that_is_damaged_has_no_thumbnail(run: RunConfig, tmp_path: Path) -> None:
    config = in_form(run, tmp_path / "out")
    finish(config)
    storage = Storage(config.output)
    for path in storage.list("stages/decode"):
        storage.delete(path)
    for path in storage.list(FOLDER):
        storage.delete(path)
    finish(config.model_copy(update={"name": "again"}))
    rejected = [row for row in gallery_rows(storage) if row.get("reason") == "not_in_best_k"]
    assert rejected and not any("thumb" in row for row in rejected)
