"""The samples of WebDataset tars: which files of one are its image and its caption."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from rudalle_lib.errors import DamagedError
from rudalle_lib.images import codecs
from rudalle_lib.training.data.listing import list_files
from rudalle_lib.training.data.rows import BadRow, FoundRow, Row
from rudalle_lib.training.data.tars import tar_rows
from tests.support.image_data import image_bytes, source, write_tar

IMAGE = image_bytes(0)


def rows_of(path: Path, captions: bool = True, **settings: object) -> list[Row]:
    return list(tar_rows(list(list_files(str(path))), source(path, **settings), captions))


def sample(path: Path, **files: object) -> Path:
    """A tar with one sample, whose files are given by suffix."""
    contents = {
        suffix: json.dumps(value).encode() if isinstance(value, dict) else str(value).encode()
        for suffix, value in files.items()
    }
    return write_tar(path, [("0.png", IMAGE), *((f"0.{s}", c) for s, c in contents.items())])


@pytest.mark.parametrize(
    ("files", "settings", "caption"),
    [
        ({"txt": "a"}, {}, "a"),
        ({"txt": "a", "json": {"caption": "b"}}, {}, "a"),
        ({"txt": "a", "json": {"text_ru": "б", "text": "b"}}, {}, "б"),
        ({"json": {"caption": "b", "prompt": "c"}}, {}, "b"),
        ({"txt": "a", "json": {"title": "d"}}, {"caption": "title"}, "d"),
        ({"txt": "a", "cap": "e"}, {"caption": "cap"}, "e"),
        ({"txt": "a", "json": {"text": 5}}, {"caption": "text"}, 5),
    ],
)
def test_where_a_caption_is_found(
    tmp_path: Path, files: dict[str, object], settings: dict[str, Any], caption: object
) -> None:
    (row,) = rows_of(sample(tmp_path / "a.tar", **files), **settings)
    assert isinstance(row, FoundRow) and (row.caption, row.image) == (caption, IMAGE)


def test_one_of_several_images_can_be_named(tmp_path: Path) -> None:
    members = [("0.left.png", IMAGE), ("0.right.png", image_bytes(1)), ("0.txt", b"a")]
    path = write_tar(tmp_path / "a.tar", members)
    (row,) = rows_of(path)
    assert isinstance(row, BadRow) and row.reason == "same_name"
    (row,) = rows_of(path, image="right.png")
    assert isinstance(row, FoundRow) and row.image == image_bytes(1)


def test_dots_of_ids_that_rudalle_flows_escapes_are_shown(tmp_path: Path) -> None:
    (row,) = rows_of(write_tar(tmp_path / "a.tar", [("x%2Ey-0.png", IMAGE), ("x%2Ey-0.txt", b"")]))
    assert row.key == "a.tar, x.y-0"


def test_links_and_huge_files_bring_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rudalle_lib.training.data.tars.MAX_BYTES", 100)
    assert len(IMAGE) > 100 and codecs.MAX_BYTES > 100
    (row,) = rows_of(write_tar(tmp_path / "a.tar", [("0.png", IMAGE), ("0.txt", b"a")]))
    assert isinstance(row, BadRow) and row.reason == "bad_image"
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert rows_of(tmp_path / "b.tar") == []


def test_without_captions_none_is_needed(tmp_path: Path) -> None:
    (row,) = rows_of(write_tar(tmp_path / "a.tar", [("0.png", IMAGE)]), captions=False)
    assert isinstance(row, FoundRow) and row.caption is None


def test_the_only_file_must_be_a_tar(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"<html>" * 500)
    with pytest.raises(DamagedError, match=r"a\.tar is damaged: expected a tar of images"):
        rows_of(tmp_path / "a.tar")
