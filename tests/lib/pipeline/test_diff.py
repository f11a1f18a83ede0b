"""What a run would do: unchanged, new and changed shards, and the stages to run again."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from rudalle_lib.config.run import RunConfig
from rudalle_lib.pipeline.diff import compare, images_by_need
from rudalle_lib.pipeline.stages import STAGE_NAMES, STAGES, fingerprints, skipped_stages
from rudalle_lib.schema.arrow import to_table
from rudalle_lib.schema.records import (
    DataFile,
    ScoreRecord,
    ShardManifest,
    ShardSpec,
    StageArtifact,
    TokensRecord,
)
from rudalle_lib.storage.storage import Storage

WEIGHTS = {stage: stage for stage in STAGE_NAMES[:-1]}
SHARDS = [ShardSpec(index, f"plan/{index:05d}.parquet", 2, f"f{index}") for index in range(3)]
OLD = RunConfig()


def finished(
    shard: ShardSpec, config: RunConfig = OLD, folder: Path = Path("/nowhere")
) -> ShardManifest:
    """The manifest that a run of `config` writes."""
    expected = fingerprints(config, WEIGHTS, shard)
    active = [stage for stage in STAGES if stage not in skipped_stages(config)]
    artifacts = {
        stage: StageArtifact(str(folder / stage), expected[stage], 1, 0.0) for stage in active
    }
    file = DataFile("data/metadata/x.parquet", 1, "")
    return ShardManifest(
        shard.index, expected["publish"], config.digest(), 2, 8, 2, {}, 1, file, None, artifacts, ""
    )


def test_finished_shards_with_equal_fingerprints_are_unchanged() -> None:
    difference = compare(OLD, WEIGHTS, SHARDS, [finished(SHARDS[0]), finished(SHARDS[2])])
    assert difference.unchanged == (SHARDS[0], SHARDS[2])
    assert difference.new == (SHARDS[1],)
    assert difference.todo == [SHARDS[1]]


def test_a_changed_threshold_needs_only_publishing() -> None:
    config = RunConfig.model_validate({"score": {"min_score": 0.3}})
    difference = compare(config, WEIGHTS, SHARDS, [finished(shard) for shard in SHARDS[:2]])
    assert difference.changed == ((SHARDS[0], ("publish",)), (SHARDS[1], ("publish",)))
    assert difference.todo == SHARDS


def test_changed_sampling_needs_all_stages_but_translate() -> None:
    config = RunConfig.model_validate({"generate": {"temperature": 0.9}})
    ((_, stages),) = compare(config, WEIGHTS, SHARDS[:1], [finished(SHARDS[0])]).changed
    assert stages == tuple(stage for stage in STAGE_NAMES[1:] if stage != "cutout")


def test_an_upscaler_that_is_added_or_removed_changes_shards() -> None:
    without = RunConfig.model_validate({"upscale": {"model": None}})
    ((_, stages),) = compare(without, WEIGHTS, SHARDS[:1], [finished(SHARDS[0])]).changed
    assert stages == ("publish",)
    ((_, stages),) = compare(OLD, WEIGHTS, SHARDS[:1], [finished(SHARDS[0], without)]).changed
    assert stages == ("upscale", "publish")


@pytest.mark.parametrize(
    ("change", "needs"),
    [
        ({}, {"": 2}),
        ({"score": {"min_score": 0.5}}, {"publish": 1, "withdrawn": 1}),
        ({"score": {"keep_best": 3}}, {"upscale": 1, "publish": 2}),
        ({"score": {"keep_best": 3}, "upscale": {"model": None}}, {"publish": 3}),
        ({"upscale": {"model": "realesrgan-x4"}}, {"upscale": 2}),
        ({"cutout": {"transparent": True}}, {"cutout": 2}),
        ({"score": {"keep_best": 3}, "cutout": {"transparent": True}}, {"upscale": 1, "cutout": 2}),
        ({"decode": {"model": "vqgan-f8"}}, {"decode": 8}),
        ({"generate": {"top_p": 0.5}}, {"generate": 8}),
    ],
)
def test_images_are_counted_by_the_first_stage_that_they_need(
    change: dict[str, dict[str, object]], needs: dict[str, int], tmp_path: Path
) -> None:
    storage = Storage(str(tmp_path))
    scores = [
        ScoreRecord(name, "p", 0.7 - 0.3 * place, place + 1) for place, name in enumerate("abcd")
    ]
    tokens = [
        TokensRecord(name, "p", number, 0, [number], -1.0, 2.0, 1.0, 0, 0.9, False)
        for number, name in enumerate("abcd")
    ]
    storage.write_table("score", to_table(scores, ScoreRecord))
    storage.write_table("generate", to_table(tokens, TokensRecord))
    storage.write_table("data/metadata/x.parquet", pa.table({"image_id": ["a", "b"]}))
    old = RunConfig.model_validate({"score": {"keep_best": 2}})
    merged = {
        "score": {"keep_best": 2, **change.get("score", {})},
        **{k: v for k, v in change.items() if k != "score"},
    }
    config = RunConfig.model_validate(merged)
    manifests = [finished(SHARDS[0], old, tmp_path)]
    difference = compare(config, WEIGHTS, SHARDS[:1], manifests)
    assert images_by_need(storage, config, difference, manifests) == needs
