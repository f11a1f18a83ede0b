"""A written shard: images, one metadata row per image; other versions stay."""

from __future__ import annotations

import hashlib

import pyarrow as pa

from rudalle_lib.config.sections import PublishConfig
from rudalle_lib.dataset.layout import version_of
from rudalle_lib.dataset.writer import with_extras, write_shard
from rudalle_lib.schema.arrow import schema
from rudalle_lib.schema.records import DataFile, ImageRecord
from rudalle_lib.storage.storage import Storage
from tests.support.image_records import VERSION, images, read_records


def test_images_and_metadata_agree(storage: Storage) -> None:
    given = images(("a", 0), ("a", 5), ("b", 1))
    written = write_shard(storage, 3, VERSION, iter(given), PublishConfig())
    records = read_records(storage, 3)
    assert [item.path for item in records] == [
        f"data/images/00003/{VERSION}/a-000.png",
        f"data/images/00003/{VERSION}/a-005.png",
        f"data/images/00003/{VERSION}/b-001.png",
    ]
    for item, (before, content) in zip(records, given, strict=True):
        assert storage.read_bytes(item.path) == content
        assert item.bytes == len(content)
        assert item.sha256 == hashlib.sha256(content).hexdigest()
        assert item.text_ru == before.text_ru
    assert written.image_bytes == sum(len(content) for _, content in given)
    content = storage.read_bytes(f"data/metadata/00003.{VERSION}.parquet")
    assert written.metadata == DataFile.of(f"data/metadata/00003.{VERSION}.parquet", content)


def test_another_version_leaves_the_files_of_the_first(storage: Storage) -> None:
    write_shard(storage, 3, VERSION, images(("a", 0), ("b", 0)), PublishConfig())
    before = {path: storage.read_bytes(path) for path in storage.list()}
    write_shard(storage, 3, version_of("f" * 32, 1), images(("a", 0)), PublishConfig())
    after = {path: storage.read_bytes(path) for path in storage.list()}
    assert before.items() < after.items()
    assert sorted(after.keys() - before.keys()) == [
        "data/images/00003/ffffffffffffffff-1/a-000.png",
        "data/metadata/00003.ffffffffffffffff-1.parquet",
    ]


def test_a_shard_may_be_empty(storage: Storage) -> None:
    extras = pa.table({"prompt_id": ["a"], "x": [1]})
    written = write_shard(storage, 0, VERSION, [], PublishConfig(image_format="webp"), extras)
    assert written.image_bytes == 0
    table = storage.read_table(f"data/metadata/00000.{VERSION}.parquet")
    assert table.column_names == [*schema(ImageRecord).names, "x"]
    assert table.num_rows == 0


def test_pass_through_columns_follow_their_prompt(storage: Storage) -> None:
    extras = pa.table({"prompt_id": ["a", "b"], "split": ["train", "test"], "score": [7, 8]})
    given = images(("b", 0), ("a", 0), ("b", 1))
    write_shard(storage, 3, VERSION, given, PublishConfig(image_format="jpeg"), extras)
    table = storage.read_table(f"data/metadata/00003.{VERSION}.parquet")
    assert table.column("split").to_pylist() == ["test", "train", "test"]
    assert (
        table.column("score").to_pylist() == [0.25] * 3
    )  # the column of ImageRecord keeps its name
    assert table.column("input_score").to_pylist() == [8, 7, 8]
    assert table.schema.field("input_score").type == pa.int64()


def test_names_never_collide() -> None:
    table = pa.table({"prompt_id": ["a"], "x": [1], "input_x": [2]})
    extras = pa.table([["a"], [3], ["mine"]], names=["prompt_id", "x", "prompt_id"])
    found = with_extras(table, extras)
    assert found.column_names == ["prompt_id", "x", "input_x", "input_input_x", "input_prompt_id"]


def test_columns_describe_themselves_on_disk(storage: Storage) -> None:
    write_shard(storage, 3, VERSION, images(("a", 0)), PublishConfig())
    stored = storage.read_table(f"data/metadata/00003.{VERSION}.parquet").schema
    assert stored.field("score").metadata[b"description"].startswith(b"Cosine")
