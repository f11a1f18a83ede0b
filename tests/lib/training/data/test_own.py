"""A dataset that rudalle-flows made is read in each of its forms, and as a shared copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.frames import read_images
from rudalle_lib.dataset.reader import PublishedImages
from rudalle_lib.errors import DataError
from rudalle_lib.images.codecs import decode_image
from rudalle_lib.sharing.contents import read_contents
from rudalle_lib.sharing.folder import FolderTarget
from rudalle_lib.sharing.push import push
from rudalle_lib.storage.storage import Storage
from rudalle_lib.training.data.rows import BadRow, FoundRow
from rudalle_lib.training.data.sources import read_rows, recognise
from tests.support.finished_run import finish, in_form
from tests.support.image_data import source


def rows_of(uri: object, **settings: object) -> list[FoundRow]:
    rows = list(read_rows(source(uri, **settings)))
    assert all(isinstance(row, FoundRow) for row in rows)
    return [row for row in rows if isinstance(row, FoundRow)]


@pytest.mark.parametrize("form", ["files", "webdataset", "parquet"])
def test_each_form_gives_the_published_images(
    finished: RunConfig, tmp_path: Path, form: str
) -> None:
    config = in_form(finished, tmp_path / "out", format=form)
    finish(config)
    published = read_images(config.output)
    rows = rows_of(config.output)
    assert recognise(source(config.output)).form == "ours"
    assert [row.key for row in rows] == list(published.index)
    assert [row.caption for row in rows] == list(published["text_ru"])
    for row, width in zip(rows, published["width"], strict=True):
        assert callable(row.image) and decode_image(row.image()).shape[2] == width
    assert [row.stamp for row in rows] == list(published["sha256"])
    assert [row.caption for row in rows_of(config.output, caption="theme")] == list(
        published["theme"]
    )


def test_splits(finished: RunConfig, tmp_path: Path) -> None:
    splits = {"train": 0.5, "validation": 0.5}
    config = in_form(finished, tmp_path / "out", format="parquet", splits=splits)
    finish(config)
    by_split = read_images(config.output)["split"]
    assert 0 < (by_split == "train").sum() < len(by_split)
    for split, wanted in (("train", None), ("validation", "validation")):
        names = [row.key for row in rows_of(config.output, split=wanted)]
        assert names == list(by_split.index[by_split == split])
    with pytest.raises(DataError, match="no split 'mine'"):
        rows_of(config.output, split="mine")


def test_on_s3(finished: RunConfig, s3_url: str) -> None:
    local, remote = Storage(finished.output), Storage(s3_url)
    for path in local.list():
        remote.write_bytes(path, local.read_bytes(path))
    rows = rows_of(s3_url)
    assert [row.key for row in rows] == list(read_images(finished.output).index)
    assert callable(rows[0].image) and decode_image(rows[0].image()).shape[0] == 3


def test_a_damaged_shard_is_a_reject(config: RunConfig) -> None:
    whole = rows_of(config.output)
    manifest = sorted(Path(config.output).glob("shards/*.json"))[0]
    manifest.write_text(manifest.read_text().replace('"kept"', '"kapt"'))
    first, *others = read_rows(source(config.output))
    assert isinstance(first, BadRow) and first.reason == "damaged_file"
    assert 0 < len(others) < len(whole)


@pytest.mark.parametrize("form", ["files", "webdataset", "parquet"])
def test_a_copy_that_was_pushed(finished: RunConfig, tmp_path: Path, form: str) -> None:
    config = in_form(finished, tmp_path / "out", format=form)
    finish(config)
    push(read_contents(Storage(config.output)), FolderTarget(str(tmp_path / "copy")))
    rows = rows_of(tmp_path / "copy")
    published = read_images(config.output)
    assert [row.caption for row in rows] == list(published["text_ru"])
    assert [row.image for row in rows] == [
        PublishedImages(Storage(config.output)).read(path, name)
        for name, path in published["path"].items()
    ]
