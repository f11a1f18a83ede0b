"""Publishing, on disk and on S3: each prompt and image is published or rejected with a reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from rudalle_lib.checks.audit import audit_output
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset import layout
from rudalle_lib.dataset.frames import read_rejects
from rudalle_lib.dataset.layout import version_of
from rudalle_lib.dataset.manifests import write_shard_manifest
from rudalle_lib.digests import digest_of
from rudalle_lib.images.codecs import decode_image
from rudalle_lib.schema.arrow import from_table
from rudalle_lib.schema.records import DataFile, RejectRecord, ShardSpec
from rudalle_lib.storage.storage import Storage
from tests.support.hand_made import plan_by_hand, publish_by_hand
from tests.support.image_records import read_records


@pytest.fixture
def config(output_url: str) -> RunConfig:
    return RunConfig.model_validate({"output": output_url, "score": {"keep_best": 1}})


@pytest.fixture
def shard(config: RunConfig, tmp_path: Path) -> ShardSpec:
    return plan_by_hand(config, tmp_path)


def test_each_prompt_and_image_is_published_or_rejected_with_a_reason(
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
    rows = {row.prompt_id: row.source_row for row in rejects}
    assert rows == {"circle": 1, "square": 2, "red": 3, "long": 4}


def test_rejects_carry_score_translation_and_own_columns(
    storage: Storage, config: RunConfig, shard: ShardSpec
) -> None:
    manifest = publish_by_hand(storage, config, shard)
    assert manifest.rejects is not None
    table = storage.read_table(manifest.rejects.path)
    rows = {row["image_id"] or row["prompt_id"]: row for row in table.to_pylist()}
    second, undecoded, prompt = rows["circle-001"], rows["circle-003"], rows["red"]
    assert (second["score"], second["rank"]) == (pytest.approx(0.1), 3)
    assert (second["text_ru"], second["theme"]) == ("круг", "a")
    assert (undecoded["score"], undecoded["rank"], undecoded["theme"]) == (None, None, "a")
    assert (prompt["text_ru"], prompt["score"], prompt["theme"]) == (None, None, "c")
    assert rows["long"]["text_ru"] == "длинный"


def test_rejects_of_earlier_versions_are_read(
    storage: Storage, config: RunConfig, shard: ShardSpec
) -> None:
    manifest = publish_by_hand(storage, config, shard)
    assert manifest.rejects is not None
    now = storage.read_table(manifest.rejects.path)
    former = now.select(["prompt_id", "image_id", "text", "stage", "reason", "detail"])
    rows = from_table(former, RejectRecord)
    assert {(row.text_ru, row.score, row.rank) for row in rows} == {(None, None, None)}
    with pytest.raises(KeyError):
        from_table(former.drop_columns(["reason"]), RejectRecord)
    path = manifest.rejects.path
    changed = replace(manifest, rejects=DataFile.of(path, storage.write_table(path, former)))
    write_shard_manifest(storage, changed)
    assert not [fault for fault in audit_output(storage).faults if fault.path == path]
    frame = read_rejects(storage.url())
    assert frame["score"].isna().all() and {"text_ru", "rank"} <= set(frame.columns)


def test_a_metadata_row_combines_the_rows_of_all_stages(
    storage: Storage, config: RunConfig, shard: ShardSpec
) -> None:
    manifest = publish_by_hand(storage, config, shard)
    first, _ = read_records(storage, shard.index)
    assert (first.image_id, first.rank, first.seed) == ("circle-000", 1, 2**62)
    assert first.score == pytest.approx(0.5)
    assert (first.width, first.upscaler, first.translator) == (16, "demo-realesrgan-x2", None)
    assert decode_image(storage.read_bytes(first.path)).shape == (3, 16, 16)
    themes = storage.read_table(manifest.metadata.path, ["theme"])
    assert themes.column("theme").to_pylist() == ["a", "b"]


def test_publishing_again_leaves_no_old_images(
    storage: Storage, config: RunConfig, shard: ShardSpec
) -> None:
    publish_by_hand(storage, config, shard)
    narrow = config.score.model_copy(update={"min_score": 0.45, "keep_best": None})
    manifest = publish_by_hand(storage, config.model_copy(update={"score": narrow}), shard)
    assert manifest.rejected["below_threshold"] == 4
    webp = config.publish.model_copy(update={"image_format": "webp"})
    publish_by_hand(storage, config.model_copy(update={"publish": webp}), shard)
    assert storage.list("data/images") == [
        layout.image_path(0, version_of(digest_of("publish")), f"{name}-000", "webp")
        for name in ("circle", "square")
    ]


def test_the_manifest_counts_time_and_bytes(
    storage: Storage, config: RunConfig, shard: ShardSpec
) -> None:
    manifest = publish_by_hand(storage, config, shard)
    assert manifest.stages["generate"].seconds == 1.0
    assert "publish" in manifest.stages
    assert manifest.image_bytes == sum(row.bytes for row in read_records(storage, 0))
