"""Shards in one file are what WebDataset and Hugging Face read, whatever the ids look like."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from rudalle_lib.archives import unpack_table, unpack_tar, write_table, write_tar
from rudalle_lib.config_publish import PublishConfig
from rudalle_lib.errors import StorageError
from rudalle_lib.published import PublishedPictures
from rudalle_lib.shards import data_file, read_records, write_shard
from rudalle_lib.storage import Storage
from tests.lib.test_shards import images, record

IDS = (("a", 0), ("b.c", 1), ("b-c", 1))
"""A prompt id may hold dots, at which WebDataset ends a name."""


def packed(write: Callable[..., None], table: pa.Table, pictures: list[bytes], group: int) -> bytes:
    """What is written of some pictures, a group at a time."""
    stream = io.BytesIO()
    starts = range(0, len(pictures), group)
    groups = ((table.slice(start, group), pictures[start : start + group]) for start in starts)
    write(stream, groups, "png")
    assert not stream.closed
    return stream.getvalue()


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture
def pictures() -> list[bytes]:
    return [png(value) for value in range(len(IDS))]


@pytest.fixture
def table() -> pa.Table:
    """Metadata with a column that no JSON knows, and one whose name is taken."""
    names = [record(*key).image_id for key in IDS]
    days = pa.array([0, 1, 2], pa.date32())
    return pa.table({"image_id": names, "text": ["круг"] * 3, "day": days, "image": [1, 2, 3]})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it closes none
def test_webdataset_reads_a_tar(table: pa.Table, pictures: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(packed(write_tar, table, pictures, 3))
    reader = webdataset.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False)
    found = list(reader.decode("pil"))
    assert [sample["json"]["image_id"] for sample in found] == table["image_id"].to_pylist()
    assert [sample["png"].getpixel((0, 0))[0] for sample in found] == [0, 1, 2]
    assert all(sample["txt"] == "круг" for sample in found)
    assert [sample["json"]["day"] for sample in found][2] == "1970-01-03"


def test_a_tar_gives_its_pictures_back_and_is_always_the_same(
    table: pa.Table, pictures: list[bytes]
) -> None:
    content = packed(write_tar, table, pictures, 3)
    assert unpack_tar(content, "it") == dict(
        zip(table["image_id"].to_pylist(), pictures, strict=True)
    )
    assert all(packed(write_tar, table, pictures, group) == content for group in (1, 2))


@pytest.mark.parametrize("content", [b"no tar at all", b""])
def test_what_is_no_tar_and_no_table_is_named(content: bytes) -> None:
    with pytest.raises(StorageError, match=r"00000\.tar is damaged: expected a tar"):
        unpack_tar(content, "00000.tar")
    with pytest.raises(StorageError, match=r"00000\.parquet is damaged: expected a table"):
        unpack_table(content, "00000.parquet")


def test_a_tar_is_what_tarfile_writes(table: pa.Table, pictures: list[bytes]) -> None:
    content = packed(write_tar, table, pictures, 3)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = tar.getmembers()
        files = [(member, tar.extractfile(member)) for member in members]
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as again:
            for member, file in files:
                again.addfile(member, file)
    assert stream.getvalue().rstrip(b"\0") == content.rstrip(b"\0")


def test_a_table_holds_pictures_as_hugging_face_has_them(
    table: pa.Table, pictures: list[bytes]
) -> None:
    content = packed(write_table, table, pictures, 3)
    read = pq.read_table(io.BytesIO(content))
    assert read.column_names == ["image", "image_id", "text", "day", "input_image"]
    assert read["image"][1].as_py() == {"bytes": pictures[1], "path": "b.c-001.png"}
    told = json.loads(read.schema.metadata[b"huggingface"])
    assert told["info"]["features"] == {"image": {"_type": "Image"}}
    assert list(unpack_table(content, "it").values()) == pictures


def test_names_of_a_table_never_collide(table: pa.Table, pictures: list[bytes]) -> None:
    table = table.append_column("input_image", table["day"])
    read = pq.read_table(io.BytesIO(packed(write_table, table, pictures, 3)))
    assert read.column_names[-2:] == ["input_input_image", "input_image"]


@pytest.mark.parametrize(
    ("form", "path"),
    [("webdataset", "data/webdataset/00003.tar"), ("parquet", "data/parquet/00003.parquet")],
)
def test_a_shard_in_one_file(storage: Storage, form: str, path: str) -> None:
    given = images(*IDS)
    written = write_shard(storage, 3, iter(given), PublishConfig(format=form))
    assert written.archive == data_file(path, storage.read_bytes(path))
    records = read_records(storage, 3)
    assert {row.path for row in records} == {path}
    assert storage.list("data") == sorted([written.metadata.path, path])
    reader = PublishedPictures(storage)
    assert [reader.read(row.path, row.image_id) for row in records] == [
        content for _, content in given
    ]
    with pytest.raises(StorageError, match=r"holds no picture z-000.*data/metadata"):
        reader.read(path, "z-000")


def test_few_pictures_of_a_table_are_read_together(storage: Storage, tmp_path: Path) -> None:
    many = images(*(("a", number) for number in range(130)))
    write_shard(storage, 0, iter(many), PublishConfig(format="parquet"))
    content = storage.read_bytes("data/parquet/00000.parquet")
    assert pq.ParquetFile(io.BytesIO(content)).num_row_groups == 3


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_another_form_replaces_the_first(storage: Storage, form: str) -> None:
    for first, second in (("files", form), (form, "files")):
        write_shard(storage, 3, images(("a", 0)), PublishConfig(format=first))
        written = write_shard(storage, 3, images(("b", 0)), PublishConfig(format=second))
        kept = [written.metadata.path, read_records(storage, 3)[0].path]
        assert storage.list("data") == sorted(kept)


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_a_shard_without_pictures_has_no_such_file(storage: Storage, form: str) -> None:
    written = write_shard(storage, 3, [], PublishConfig(format=form))
    assert written.archive is None and storage.list("data") == [written.metadata.path]
