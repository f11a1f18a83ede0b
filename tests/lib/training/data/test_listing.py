"""The files of a dataset in order, and which splits their names stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

from rudalle_lib.errors import DataError
from rudalle_lib.storage.storage import Storage
from rudalle_lib.training.data.listing import in_split, list_files, split_in

NAMES = ["b.png", "a/2.png", "a/10.png", "a/c/0.png", ".hidden/x.png", "_x.png"]


def test_files_come_in_one_order_on_every_storage(tmp_path: Path, s3_url: str) -> None:
    for storage in (Storage(str(tmp_path)), Storage(s3_url)):
        for name in NAMES:
            storage.write_bytes(name, name.encode())
        files = list(list_files(storage.url()))
        assert [file.name for file in files] == ["b.png", "a/10.png", "a/2.png", "a/c/0.png"]
        assert all(storage.relative(file.url) == file.name for file in files)
        before = {file.name: file.stamp for file in files}
        storage.write_bytes("b.png", b"other content")
        after = {file.name: file.stamp for file in list_files(storage.url())}
        assert {name for name in after if after[name] != before[name]} == {"b.png"}


def test_a_file_and_a_pattern(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for name in NAMES:
        storage.write_bytes(name, b"x")
    (only,) = list_files(str(tmp_path / "b.png"))
    assert (only.name, only.url) == ("b.png", str(tmp_path / "b.png"))
    found = [file.name for file in list_files(str(tmp_path / "a" / "*.png"))]
    assert found == ["10.png", "2.png"]


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b.png").write_bytes(b"x")
    assert [file.name for file in list_files(str(tmp_path))] == ["b.png", "a/up"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00005.parquet", "train"),
        ("data/test.csv", "test"),
        ("validation/a.parquet", "validation"),
        ("val_1.tar", "validation"),
        ("dev.jsonl", "validation"),
        ("latest.csv", None),
        ("trainer.csv", None),
        ("devices-1.tar", None),
    ],
)
def test_splits_in_names(name: str, split: str | None) -> None:
    assert split_in(name) == split


def test_splits_for_measuring_are_left_out_if_there_are_others() -> None:
    names = ["train.csv", "test.csv", "more.csv"]
    assert in_split(names, None, "x") == ["train.csv", "more.csv"]
    assert in_split(names, "test", "x") == ["test.csv"]
    assert in_split(["test.csv"], None, "x") == ["test.csv"]
    with pytest.raises(DataError, match="x has no split 'validation'"):
        in_split(names, "validation", "x")
