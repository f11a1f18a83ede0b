"""What a run would do: finished, new and changed shards, and the stages of the changed ones."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from rudalle_lib.config import RunConfig
from rudalle_lib.difference import compare, images_by_need
from rudalle_lib.record_tables import to_table
from rudalle_lib.records import DataFile, ScoreRecord, ShardManifest, ShardSpec, StageArtifact
from rudalle_lib.stages import STAGES, fingerprints, stages_off
from rudalle_lib.storage import Storage

WEIGHTS = {stage: stage for stage in STAGES[:-1]}
SHARDS = [ShardSpec(index, f"plan/{index:05d}.parquet", 2, f"f{index}") for index in range(3)]
OLD = RunConfig()


def finished(shard: ShardSpec, config: RunConfig = OLD) -> ShardManifest:
    """The manifest that a run of `config` would have left."""
    of = fingerprints(config, WEIGHTS, shard)
    on = [stage for stage in STAGES if stage not in stages_off(config)]
    made = {stage: StageArtifact(stage, of[stage], 1, 0.0) for stage in on}
    file = DataFile("data/metadata/x.parquet", 1, "")
    return ShardManifest(
        shard.index, of["publish"], config.digest(), 2, 8, 2, {}, 1, file, None, made, ""
    )


def test_what_is_finished_with_equal_fingerprints_is_not_done_again() -> None:
    difference = compare(OLD, WEIGHTS, SHARDS, [finished(SHARDS[0]), finished(SHARDS[2])])
    assert difference.unchanged == (SHARDS[0], SHARDS[2])
    assert difference.new == (SHARDS[1],)
    assert difference.todo == [SHARDS[1]]


def test_a_changed_threshold_needs_publishing_only() -> None:
    config = RunConfig.model_validate({"score": {"min_score": 0.3}})
    difference = compare(config, WEIGHTS, SHARDS, [finished(shard) for shard in SHARDS[:2]])
    assert difference.changed == ((SHARDS[0], ("publish",)), (SHARDS[1], ("publish",)))
    assert difference.todo == SHARDS


def test_a_changed_decoder_needs_all_but_the_translation() -> None:
    config = RunConfig.model_validate({"generate": {"temperature": 0.9}})
    ((_, stages),) = compare(config, WEIGHTS, SHARDS[:1], [finished(SHARDS[0])]).changed
    assert stages == tuple(stage for stage in STAGES[1:] if stage != "cutout")


def test_an_upscaler_that_is_added_or_taken_away_is_seen() -> None:
    without = RunConfig.model_validate({"upscale": {"model": None}})
    ((_, stages),) = compare(without, WEIGHTS, SHARDS[:1], [finished(SHARDS[0])]).changed
    assert stages == ("publish",)
    ((_, stages),) = compare(OLD, WEIGHTS, SHARDS[:1], [finished(SHARDS[0], without)]).changed
    assert stages == ("upscale", "publish")


@pytest.mark.parametrize(
    ("change", "needs"),
    [
        ({}, {"": 2}),
        ({"score": {"min_score": 0.5}}, {"publish": 1}),
        ({"score": {"keep_best": 3}}, {"upscale": 1, "publish": 2}),
        ({"score": {"keep_best": 3}, "upscale": {"model": None}}, {"publish": 3}),
        ({"upscale": {"model": "realesrgan-x4"}}, {"upscale": 2}),
        ({"cutout": {"transparent": True}}, {"cutout": 2}),
        ({"score": {"keep_best": 3}, "cutout": {"transparent": True}}, {"upscale": 1, "cutout": 2}),
        ({"decode": {"model": "vqgan-f8"}}, {"decode": 8}),
        ({"generate": {"top_p": 0.5}}, {"generate": 8}),
    ],
)
def test_images_are_counted_by_what_they_need(
    change: dict[str, dict[str, object]], needs: dict[str, int], tmp_path: Path
) -> None:
    storage = Storage(str(tmp_path))
    scores = [
        ScoreRecord(name, "p", 0.7 - 0.3 * place, place + 1) for place, name in enumerate("abcd")
    ]
    storage.write_table("stages/score/00000.parquet", to_table(scores, ScoreRecord))
    storage.write_table("data/metadata/00000.parquet", pa.table({"image_id": ["a", "b"]}))
    old = RunConfig.model_validate({"score": {"keep_best": 2}})
    merged = {
        "score": {"keep_best": 2, **change.get("score", {})},
        **{k: v for k, v in change.items() if k != "score"},
    }
    config = RunConfig.model_validate(merged)
    manifests = [finished(SHARDS[0], old)]
    difference = compare(config, WEIGHTS, SHARDS[:1], manifests)
    assert images_by_need(storage, config, difference, manifests) == needs
