"""WebDataset and Hugging Face can read shards in one file, whatever the ids look like."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from rudalle_lib.config.sections import PublishConfig
from rudalle_lib.dataset.archives import unpack_table, unpack_tar, write_table, write_tar
from rudalle_lib.dataset.reader import PublishedImages
from rudalle_lib.dataset.writer import write_shard
from rudalle_lib.errors import StorageError
from rudalle_lib.schema.records import DataFile
from rudalle_lib.storage.storage import Storage
from tests.support.image_records import VERSION, images, read_records, record
from tests.support.limited_process import call_limited

ArchiveForm = Literal["webdataset", "parquet"]

IDS = (("a", 0), ("b.c", 1), ("b-c", 1))
"""Prompt ids may contain dots, at which WebDataset ends a sample's name."""


def packed(write: Callable[..., None], table: pa.Table, images: list[bytes], group: int) -> bytes:
    """The file that is written for some images, `group` at a time."""
    stream = io.BytesIO()
    starts = range(0, len(images), group)
    groups = ((table.slice(start, group), images[start : start + group]) for start in starts)
    write(stream, groups, "png")
    assert not stream.closed
    return stream.getvalue()


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture
def files() -> list[bytes]:
    return [png(value) for value in range(len(IDS))]


@pytest.fixture
def table() -> pa.Table:
    """Metadata with a column that JSON cannot represent, and one whose name is taken."""
    names = [record(*key).image_id for key in IDS]
    days = pa.array([0, 1, 2], pa.date32())
    return pa.table({"image_id": names, "text": ["круг"] * 3, "day": days, "image": [1, 2, 3]})


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # it leaves files open
def test_webdataset_reads_a_tar(table: pa.Table, files: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(packed(write_tar, table, files, 3))
    reader = webdataset.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False)
    found = list(reader.decode("pil"))
    assert [sample["json"]["image_id"] for sample in found] == table["image_id"].to_pylist()
    assert [sample["png"].getpixel((0, 0))[0] for sample in found] == [0, 1, 2]
    assert all(sample["txt"] == "круг" for sample in found)
    assert [sample["json"]["day"] for sample in found][2] == "1970-01-03"


def test_a_tar_returns_its_images_and_is_reproducible(table: pa.Table, files: list[bytes]) -> None:
    content = packed(write_tar, table, files, 3)
    assert unpack_tar(content, "it") == dict(zip(table["image_id"].to_pylist(), files, strict=True))
    assert all(packed(write_tar, table, files, group) == content for group in (1, 2))


@pytest.mark.parametrize("content", [b"not a tar", b""])
def test_a_file_that_is_not_a_tar_or_a_table_is_named(content: bytes) -> None:
    with pytest.raises(StorageError, match=r"00000\.tar is damaged: expected a tar"):
        unpack_tar(content, "00000.tar")
    with pytest.raises(StorageError, match=r"00000\.parquet is damaged: expected a table"):
        unpack_table(content, "00000.parquet")


def test_a_tar_is_the_same_as_that_of_tarfile(table: pa.Table, files: list[bytes]) -> None:
    content = packed(write_tar, table, files, 3)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = tar.getmembers()
        contents = [(member, tar.extractfile(member)) for member in members]
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as again:
            for member, file in contents:
                again.addfile(member, file)
    assert stream.getvalue().rstrip(b"\0") == content.rstrip(b"\0")


def test_a_table_holds_images_in_the_form_of_hugging_face(
    table: pa.Table, files: list[bytes]
) -> None:
    content = packed(write_table, table, files, 3)
    read = pq.read_table(io.BytesIO(content))
    assert read.column_names == ["image", "image_id", "text", "day", "input_image"]
    assert read["image"][1].as_py() == {"bytes": files[1], "path": "b.c-001.png"}
    description = json.loads(read.schema.metadata[b"huggingface"])
    assert description["info"]["features"] == {"image": {"_type": "Image"}}
    assert list(unpack_table(content, "it").values()) == files


def test_names_of_a_table_never_collide(table: pa.Table, files: list[bytes]) -> None:
    table = table.append_column("input_image", table["day"])
    read = pq.read_table(io.BytesIO(packed(write_table, table, files, 3)))
    assert read.column_names[-2:] == ["input_input_image", "input_image"]


@pytest.mark.parametrize(
    ("form", "path"),
    [
        ("webdataset", f"data/webdataset/00003.{VERSION}.tar"),
        ("parquet", f"data/parquet/00003.{VERSION}.parquet"),
    ],
)
def test_a_shard_in_one_file(storage: Storage, form: ArchiveForm, path: str) -> None:
    given = images(*IDS)
    written = write_shard(storage, 3, VERSION, iter(given), PublishConfig(format=form))
    assert written.archives == (DataFile.of(path, storage.read_bytes(path)),)
    records = read_records(storage, 3)
    assert {row.path for row in records} == {path}
    assert storage.list("data") == sorted([written.metadata.path, path])
    reader = PublishedImages(storage)
    assert [reader.read(row.path, row.image_id) for row in records] == [
        content for _, content in given
    ]


def test_a_row_group_of_a_table_holds_few_images(storage: Storage, tmp_path: Path) -> None:
    many = images(*(("a", number) for number in range(130)))
    write_shard(storage, 0, VERSION, iter(many), PublishConfig(format="parquet"))
    content = storage.read_bytes(f"data/parquet/00000.{VERSION}.parquet")
    assert pq.ParquetFile(io.BytesIO(content)).num_row_groups == 3


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_a_shard_without_images_has_no_archive(storage: Storage, form: ArchiveForm) -> None:
    written = write_shard(storage, 3, VERSION, [], PublishConfig(format=form))
    assert written.archives == () and storage.list("data") == [written.metadata.path]


# --- bombs -------------------------------------------------------------------------------------


def tar_with(
    kind: bytes, link: str = "", mode: str = "w", size: int = 2**20, count: int = 9
) -> bytes:
    """A tar with one image, and members of another kind."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]
        image = tarfile.TarInfo("image.png")
        image.size = size
        tar.addfile(image, io.BytesIO(bytes(size)))
        for number in range(count):
            member = tarfile.TarInfo(f"m{number}.png")
            member.type, member.linkname = kind, link or f"m{number}.png"
            tar.addfile(member)
    return stream.getvalue()


def sparse_tar() -> bytes:
    """A file of 512 bytes that claims to be 8 GB with holes."""
    member = tarfile.TarInfo("image.png")
    member.pax_headers = {"GNU.sparse.size": str(2**33), "GNU.sparse.map": "0,1"}
    member.size = 1
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member, io.BytesIO(b"x"))
    return stream.getvalue()


TAR_BOMBS = {
    "links to one image": lambda: tar_with(tarfile.LNKTYPE, "image.png", count=5_000),
    "symbolic links": lambda: tar_with(tarfile.SYMTYPE, "image.png", count=5_000),
    "loops of links": lambda: tar_with(tarfile.LNKTYPE),
    "loops of symbolic links": lambda: tar_with(tarfile.SYMTYPE),
    "a device": lambda: tar_with(tarfile.CHRTYPE),
    "a pipe": lambda: tar_with(tarfile.FIFOTYPE),
    "compressed": lambda: tar_with(tarfile.REGTYPE, mode="w:gz", size=2**28),
    "sparse": sparse_tar,
}


def unpack_limited(content: bytes, form: str) -> int:
    return len((unpack_tar if form == "tar" else unpack_table)(content, f"00000.{form}"))


@pytest.mark.parametrize("name", TAR_BOMBS)
def test_a_tar_that_unpacks_to_more_than_it_holds_is_damaged(name: str) -> None:
    found = call_limited(unpack_limited, TAR_BOMBS[name](), "tar")
    assert found.error is not None and "00000.tar is damaged: expected" in found.error
    assert found.megabytes < 200 and found.seconds < 10


def table_bomb(**options: object) -> bytes:
    """50,000 images of a megabyte that are stored once."""
    image = pa.array([bytes(2**20)])
    images = pa.DictionaryArray.from_arrays(pa.array([0] * 50_000, pa.int32()), image)
    ids = pa.array([f"{number}" for number in range(50_000)])
    stream = io.BytesIO()
    table = pa.table({"image_id": ids, "image": pa.StructArray.from_arrays([images], ["bytes"])})
    pq.write_table(table, stream, **options)
    return stream.getvalue()


@pytest.mark.parametrize("options", [{"compression": "none"}, {"compression": "zstd"}])
def test_a_table_that_unpacks_to_more_than_it_holds_is_damaged(options: dict[str, str]) -> None:
    found = call_limited(unpack_limited, table_bomb(**options), "parquet")
    assert found.error is not None and "00000.parquet is damaged: expected" in found.error
    assert found.megabytes < 300 and found.seconds < 10
