"""Published images are read the same way from files and from archives."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from rudalle_lib.config.sections import PublishConfig
from rudalle_lib.dataset.reader import PublishedImages, is_archive
from rudalle_lib.dataset.writer import write_shard
from rudalle_lib.errors import StorageError
from rudalle_lib.storage.storage import Storage
from tests.support.image_records import VERSION, images, read_records

Form = Literal["files", "webdataset", "parquet"]
FORMS: tuple[Form, ...] = ("files", "webdataset", "parquet")


@pytest.mark.parametrize("form", FORMS)
def test_images_are_read_from_every_form(storage: Storage, form: Form) -> None:
    given = images(("a", 0), ("b.c", 1))
    write_shard(storage, 3, VERSION, given, PublishConfig(format=form))
    reader = PublishedImages(storage)
    records = read_records(storage, 3)
    assert [is_archive(row.path) for row in records] == [form != "files"] * 2
    contents = [reader.read(row.path, row.image_id) for row in records]
    assert contents == [content for _, content in given]


@pytest.mark.parametrize("form", FORMS[1:])
def test_an_archive_is_read_once_for_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Form
) -> None:
    storage = Storage(str(tmp_path))
    for index in (0, 1):
        write_shard(
            storage,
            index,
            VERSION,
            images((f"p{index}", 0), ("q", index)),
            PublishConfig(format=form),
        )
    rows = [row for index in (0, 1) for row in read_records(storage, index)]
    read: list[str] = []
    read_bytes = storage.read_bytes

    def read_and_note(path: str) -> bytes:
        read.append(path)
        return read_bytes(path)

    monkeypatch.setattr(storage, "read_bytes", read_and_note)
    reader = PublishedImages(storage)
    for row in rows:
        reader.read(row.path, row.image_id)
    assert read == [rows[0].path, rows[2].path]


@pytest.mark.parametrize("form", FORMS[1:])
def test_a_missing_image_and_a_damaged_archive_are_named(storage: Storage, form: Form) -> None:
    written = write_shard(storage, 3, VERSION, images(("a", 0)), PublishConfig(format=form))
    path = written.archives[0].path
    with pytest.raises(StorageError, match=r"holds no image z-000.*data/metadata.*verify"):
        PublishedImages(storage).read(path, "z-000")
    storage.write_bytes(path, b"damaged")
    with pytest.raises(StorageError, match=f"{path} is damaged"):
        PublishedImages(storage).read(path, "a-000")
