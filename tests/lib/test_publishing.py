"""Publishing, on disk and on S3: nothing lost, everything that is not published has its reason."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from rudalle_lib.config import RunConfig
from rudalle_lib.images import decode_image
from rudalle_lib.record_tables import from_table
from rudalle_lib.records import RejectRecord, ShardSpec
from rudalle_lib.shards import read_records
from rudalle_lib.storage import Storage
from tests.hand_made import plan_by_hand, publish_by_hand


@pytest.fixture
def config(output_url: str) -> RunConfig:
    return RunConfig.model_validate({"output": output_url, "score": {"keep_best": 1}})


@pytest.fixture
def shard(config: RunConfig, tmp_path: Path) -> ShardSpec:
    return plan_by_hand(config, tmp_path)


def test_every_prompt_and_image_is_published_or_rejected_with_its_reason(
    storage: Storage, config: RunConfig, shard: ShardSpec
) -> None:
    manifest = publish_by_hand(storage, config, shard)
    expected = {"not_in_best_k": 4, "decode_error": 2, "translation_failed": 1, "too_long": 1}
    assert manifest.rejected == expected
    assert (manifest.prompts, manifest.images, manifest.kept) == (4, 8, 2)
    assert manifest.rejects is not None
    rejects = from_table(storage.read_table(manifest.rejects.path), RejectRecord)
    assert Counter(row.reason for row in rejects) == expected
    assert {row.text for row in rejects if row.reason == "too_long"} == {"длинный"}
    assert {row.stage for row in rejects} == {"translate", "generate", "decode", "score"}


def test_a_row_has_everything_that_is_known_of_its_image(
    storage: Storage, config: RunConfig, shard: ShardSpec
) -> None:
    publish_by_hand(storage, config, shard)
    first, _ = read_records(storage, shard.index)
    assert (first.image_id, first.rank, first.seed) == ("circle-000", 1, 2**62)
    assert first.score == pytest.approx(0.5)
    assert (first.width, first.upscaler, first.translator) == (16, "demo-realesrgan-x2", None)
    assert decode_image(storage.read_bytes(first.path)).shape == (3, 16, 16)
    themes = storage.read_table("data/metadata/00000.parquet", ["theme"])
    assert themes.column("theme").to_pylist() == ["a", "b"]


def test_publishing_anew_leaves_no_picture_of_before(
    storage: Storage, config: RunConfig, shard: ShardSpec
) -> None:
    publish_by_hand(storage, config, shard)
    narrow = config.score.model_copy(update={"min_score": 0.45, "keep_best": None})
    manifest = publish_by_hand(storage, config.model_copy(update={"score": narrow}), shard)
    assert manifest.rejected["below_threshold"] == 4
    webp = config.publish.model_copy(update={"image_format": "webp"})
    publish_by_hand(storage, config.model_copy(update={"publish": webp}), shard)
    assert storage.list("data/images") == [
        "data/images/00000/circle-000.webp",
        "data/images/00000/square-000.webp",
    ]


def test_the_manifest_counts_time_and_bytes(
    storage: Storage, config: RunConfig, shard: ShardSpec
) -> None:
    manifest = publish_by_hand(storage, config, shard)
    assert manifest.stages["generate"].seconds == 1.0
    assert "publish" in manifest.stages
    assert manifest.image_bytes == sum(row.bytes for row in read_records(storage, 0))
