"""A published shard: image files, a row of metadata for each, and nothing left of earlier tries."""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa

from rudalle_lib.config_publish import PublishConfig
from rudalle_lib.record_tables import schema
from rudalle_lib.records import ImageRecord, image_id, reject
from rudalle_lib.shards import (
    data_file,
    read_records,
    with_extras,
    write_rejects,
    write_shard,
)
from rudalle_lib.storage import Storage


def record(prompt_id: str, replica: int, **changes: Any) -> ImageRecord:
    values: dict[str, Any] = {
        "image_id": image_id(prompt_id, replica),
        "prompt_id": prompt_id,
        "replica": replica,
        "shard": 3,
        "text": "a red circle",
        "text_ru": "красный круг",
        "lang": "en",
        "seed": 2**62,
        "score": 0.25,
        "rank": 1,
        "logprob": -0.5,
        "ppl": 2.0,
        "width": 256,
        "height": 256,
        "temperature": 1.0,
        "top_k": 2048,
        "top_p": 0.995,
        "truncated": False,
        "translator": "demo-marian",
        "decoder": "demo-dalle",
        "vqgan": "demo-vqgan",
        "scorer": "demo-ruclip",
        "upscaler": None,
    }
    return ImageRecord(**{**values, **changes})


def images(*ids: tuple[str, int]) -> list[tuple[ImageRecord, bytes]]:
    return [(record(*key), f"{key}".encode() * 100) for key in ids]


def test_images_and_metadata_agree(storage: Storage) -> None:
    given = images(("a", 0), ("a", 5), ("b", 1))
    written = write_shard(storage, 3, iter(given), PublishConfig())
    records = read_records(storage, 3)
    assert [item.path for item in records] == [
        "data/images/00003/a-000.png",
        "data/images/00003/a-005.png",
        "data/images/00003/b-001.png",
    ]
    for item, (before, content) in zip(records, given, strict=True):
        assert storage.read_bytes(item.path) == content
        assert item.bytes == len(content)
        assert item.sha256 == hashlib.sha256(content).hexdigest()
        assert item.text_ru == before.text_ru
    assert written.image_bytes == sum(len(content) for _, content in given)
    content = storage.read_bytes("data/metadata/00003.parquet")
    assert written.metadata == data_file("data/metadata/00003.parquet", content)


def test_a_second_try_replaces_the_first(storage: Storage) -> None:
    storage.write_bytes("shards/00003.json", b"{}")
    storage.write_bytes("data/images/00004/other.png", b"another shard's")
    write_shard(storage, 3, images(("a", 0), ("a", 1), ("b", 0)), PublishConfig())
    write_shard(storage, 3, images(("a", 1), ("b", 2)), PublishConfig())
    assert storage.list("data/images") == [
        "data/images/00003/a-001.png",
        "data/images/00003/b-002.png",
        "data/images/00004/other.png",
    ]
    assert not storage.exists("shards/00003.json")  # until whoever publishes writes a new one


def test_a_shard_may_be_empty(storage: Storage) -> None:
    written = write_shard(
        storage, 0, [], PublishConfig(image_format="webp"), pa.table({"prompt_id": ["a"], "x": [1]})
    )
    assert written.image_bytes == 0
    table = storage.read_table("data/metadata/00000.parquet")
    assert table.column_names == [*schema(ImageRecord).names, "x"]
    assert table.num_rows == 0


def test_pass_through_columns_follow_their_prompt(storage: Storage) -> None:
    extras = pa.table({"prompt_id": ["a", "b"], "split": ["train", "test"], "score": [7, 8]})
    write_shard(
        storage, 3, images(("b", 0), ("a", 0), ("b", 1)), PublishConfig(image_format="jpeg"), extras
    )
    table = storage.read_table("data/metadata/00003.parquet")
    assert table.column("split").to_pylist() == ["test", "train", "test"]
    assert table.column("score").to_pylist() == [0.25] * 3  # ours keeps its name
    assert table.column("input_score").to_pylist() == [8, 7, 8]
    assert table.schema.field("input_score").type == pa.int64()


def test_names_never_collide() -> None:
    table = pa.table({"prompt_id": ["a"], "x": [1], "input_x": [2]})
    extras = pa.table([["a"], [3], ["mine"]], names=["prompt_id", "x", "prompt_id"])
    found = with_extras(table, extras)
    assert found.column_names == ["prompt_id", "x", "input_x", "input_input_x", "input_prompt_id"]


def test_columns_describe_themselves_on_disk(storage: Storage) -> None:
    write_shard(storage, 3, images(("a", 0)), PublishConfig())
    stored = storage.read_table("data/metadata/00003.parquet").schema
    assert stored.field("score").metadata[b"description"].startswith(b"Cosine")


def test_rejects_are_replaced(storage: Storage) -> None:
    row = reject("below_threshold", "0.1 < 0.2", stage="score", prompt_id="a", image_id="a-000")
    write_rejects(storage, 3, [row, row])
    file = write_rejects(storage, 3, [row])
    assert storage.read_table("rejects/00003.parquet").num_rows == 1
    assert file == data_file(file.path, storage.read_bytes("rejects/00003.parquet"))
