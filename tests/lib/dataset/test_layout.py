"""Paths of the output: they are part of the format on disk, and lead back to their shard."""

from __future__ import annotations

import pytest

from rudalle_lib.dataset import layout
from tests.support.image_records import VERSION


def test_paths_of_a_shard() -> None:
    assert layout.plan_path(7) == "plan/00007.parquet"
    assert layout.stage_path("decode", 7) == "stages/decode/00007.parquet"
    assert layout.images_folder(7) == "data/images/00007"
    assert layout.metadata_path(7) == "data/metadata/00007.parquet"
    assert layout.rejects_path(7) == "rejects/00007.parquet"
    assert layout.shard_manifest_path(123_456) == "shards/123456.json"
    assert layout.lease_path(1) == "lease/00001.json"
    assert layout.gallery_chunk_path(2) == "gallery/data/00002.js"


@pytest.mark.parametrize(
    ("image_format", "suffix"), [("png", "png"), ("webp", "webp"), ("jpeg", "jpg")]
)
def test_images_have_the_suffix_of_their_format(image_format: str, suffix: str) -> None:
    assert layout.image_suffix(image_format) == suffix
    path = layout.image_path(1, VERSION, "a-000", image_format)
    assert path == f"data/images/00001/{VERSION}/a-000.{suffix}"
    assert layout.parse(path) == layout.Name("image", 1, VERSION)


@pytest.mark.parametrize(
    ("form", "folder", "archive"),
    [
        ("webdataset", "data/webdataset", "data/webdataset/00003.tar"),
        ("parquet", "data/parquet", "data/parquet/00003.parquet"),
    ],
)
def test_archives_have_a_folder_of_their_own(form: str, folder: str, archive: str) -> None:
    assert layout.published_folder(form) == folder
    assert layout.archive_path(form, 3) == archive
    assert layout.published_folder("files") == "data/images"


def test_a_split_has_a_folder_of_its_own() -> None:
    image = layout.image_path(1, VERSION, "a-000", "png", "train")
    assert image == f"data/images/train/00001/{VERSION}/a-000.png"
    assert layout.parse(image) == layout.Name("image", 1, VERSION, split="train")
    archive = layout.archive_path("webdataset", 1, VERSION, "test")
    assert archive == f"data/webdataset/test/00001.{VERSION}.tar"
    assert layout.parse(archive) == layout.Name("archive", 1, VERSION, split="test")
    table = layout.image_table_path("train")
    assert table == "data/images/train/metadata.parquet"
    assert layout.parse(table) == layout.Name("image table", split="train")
    assert layout.parse(layout.image_table_path()) == layout.Name("image table")
    assert layout.parse("data/images/Mine/00001/a-000.png") is None


def test_every_prompt_table_has_a_file_of_rejects() -> None:
    one, other = (layout.plan_rejects_path(url) for url in ("s3://a/b.csv", "s3://a/c.csv"))
    assert one != other and one == layout.plan_rejects_path("s3://a/b.csv")
    assert layout.parse(one) == layout.Name("plan rejects")


def test_what_is_written_carries_its_version() -> None:
    assert layout.version_of("0123456789abcdef0123456789abcdef") == VERSION
    assert layout.version_of("0123456789abcdef0123456789abcdef", 2) == f"{VERSION}-2"
    assert layout.stage_path("decode", 7, VERSION) == f"stages/decode/00007.{VERSION}.parquet"
    assert layout.metadata_path(7, VERSION) == f"data/metadata/00007.{VERSION}.parquet"
    assert layout.rejects_path(7, VERSION) == f"rejects/00007.{VERSION}.parquet"
    assert layout.images_folder(7, VERSION) == f"data/images/00007/{VERSION}"
    assert layout.archive_path("webdataset", 7, VERSION) == f"data/webdataset/00007.{VERSION}.tar"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("plan/00007.parquet", "plan"),
        ("stages/decode/00007.parquet", "stage"),
        (f"stages/decode/00007.{VERSION}.parquet", "stage"),
        ("data/images/00007/a-000.png", "image"),
        (f"data/images/00007/{VERSION}-3/a.b-000.jpg", "image"),
        ("data/parquet/00007.parquet", "archive"),
        (f"data/webdataset/00007.{VERSION}.tar", "archive"),
        (f"data/metadata/00007.{VERSION}-12.parquet", "metadata"),
        (f"rejects/00007.{VERSION}.parquet", "rejects"),
        ("shards/00007.json", "manifest"),
        ("shards/00007-2.json", "manifest"),
        ("lease/00007.json", "lease"),
    ],
)
def test_names_lead_back_to_their_shard(path: str, kind: str) -> None:
    found = layout.parse(path)
    assert found is not None and (found.kind, found.number) == (kind, 7)
    assert layout.index_of(path, kind) == 7
    assert layout.index_of(path, "plan" if kind != "plan" else "stage") is None


def test_the_term_of_a_takeover_is_in_the_name() -> None:
    assert layout.shard_manifest_path(7, 2) == "shards/00007-2.json"
    for path in ("shards/00007-2.json", f"rejects/00007.{VERSION}-2.parquet"):
        found = layout.parse(path)
        assert found is not None and found.term == 2


@pytest.mark.parametrize(
    "path",
    [
        "",
        "shards/00001-0.json",
        "shards/00001-123456789.json",
        "plan/",
        "plan/1.parquet",
        "plan/notes.txt",
        "plan/٠٠٠٠١.parquet",  # digits, but not ASCII
        "plan/00001.parquet.bak",
        "plan/00001.parquet~",
        "plan/00001.parquet.crc",
        "plan/00001.parquet.5f3a1b2c.partial",  # rclone
        "plan/.00001.parquet.Xy12Zq",  # rsync
        "plan/00001 (1).parquet",
        "plan/00001 (conflicted copy 2026-11-29).parquet",
        "plan/00001.PARQUET",
        "plan/.nfs0000000000000001",
        "Plan/00001.parquet",
        "plan//00001.parquet",
        "./plan/00001.parquet",
        "shards/._00001.json",  # macOS
        "plan/00001.parquet\n",
        "old/plan/00001.parquet",
        "stages/decode/00001.0123.parquet",
        f"stages/decode/00001.{VERSION.upper()}.parquet",
        "data/images/00001/notes.txt",
        f"data/images/00001/{VERSION}/sub/a.png",
        "data/images/summer/a.png",
        "rejects/plan-notes.parquet",
        "notes.txt",
    ],
)
def test_other_names_are_not_ours(path: str) -> None:
    assert layout.parse(path) is None
